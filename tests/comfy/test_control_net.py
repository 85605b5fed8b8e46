"""A ControlNet of the trainer is a stock one to ComfyUI, whatever the sizes of its image model."""

import pytest
import torch

TEXT = "a red circle over a dark background"
FRAMES = 3


@pytest.fixture(scope="module")
def networks(comfy):
    """An image UNet with two heads of 16 channels and a ControlNet for it, with random weights, both saved."""
    from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
    from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.checkpoint import LatentSpec
    from weft.model_loaders.image_unet import ImageUNetConfig
    from weft.training.control_net import ControlNet, save_control_net
    from weft.training.image_unet import ImageUNet, component_of

    torch.manual_seed(2)
    with torch.inference_mode(False):
        image = ImageUNet(ImageUNetConfig(8, 32, (1, 1, 2, 2), 1, (1, 2, 4), context_width=12, heads=2))
        control = ControlNet.of(image.unet, "the image model")
        for name, weight in control.named_parameters():
            if "controlnet_" in name:
                torch.nn.init.normal_(weight, std=0.1)
            weight.data = weight.half().float()  # files hold half precision
        words = CaptionEncoderConfig(("a", "red", "circle", "over", "dark", "background"), 12, 1, 2, 12)
        sizes = VideoAutoencoderConfig(
            n_hiddens=4, downsample=(1, 8, 8), z_channels=8, embed_dim=8, norm_groups=4, framewise=True
        )
        parts = {"diffusion_model": component_of(image), "text_encoder": CaptionEncoder(words)}
        parts["vae"] = VideoAutoencoder(sizes)
        facts = {"latent": LatentSpec(8, 8, 1, 1.5, -0.1, dimensions=2), "schedule": NoiseSchedule(0.00085, 0.012)}
        models = comfy.base / "models"
        save_bundle(
            models / "checkpoints" / "controlled.safetensors",
            parts,
            system="image",
            metadata={},
            dtype=torch.float32,
            **facts,
        )
        save_control_net(models / "controlnet" / "edges.safetensors", control, hint="canny")
    return image.eval().requires_grad_(False), control.eval().requires_grad_(False)


@pytest.fixture
def loaded(comfy, networks):
    """MODEL, CLIP and VAE."""
    return comfy.run("WeftLoadCheckpoint", checkpoint="controlled.safetensors")


@pytest.fixture
def control_net(comfy, networks):
    """By the stock loader."""
    return comfy.run("ControlNetLoader", control_net_name="edges.safetensors")[0]


@pytest.fixture
def hints(comfy):
    """IMAGE of edges, (3, 64, 64, 3), by the stock node."""
    pictures = torch.full((FRAMES, 64, 64, 3), 0.1)
    for number, start in enumerate((8, 20, 32)):
        pictures[number, start : start + 20, 16:40] = torch.tensor([0.9, 0.2, 0.1])
    return comfy.run("Canny", image=pictures, low_threshold=0.1, high_threshold=0.2)[0]


@pytest.fixture
def sample(comfy, loaded):
    """Sample by the stock nodes, with a ControlNet or without; LATENT's samples."""

    def run(net=None, images=None, strength=1.0, model=None):
        conditioning = [comfy.run("CLIPTextEncode", clip=loaded[1], text=text)[0] for text in (TEXT, "")]
        if net is not None:
            names = ("positive", "negative")
            applied = {"control_net": net, "image": images, "strength": strength}
            range_ = {"start_percent": 0.0, "end_percent": 1.0}
            conditioning = comfy.run(
                "ControlNetApplyAdvanced", **dict(zip(names, conditioning, strict=True)), **applied, **range_
            )
        latent = comfy.run("EmptyLatentImage", width=64, height=64, batch_size=FRAMES)[0]
        settings = {"seed": 3, "steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        positive, negative = conditioning
        inputs = {"positive": positive, "negative": negative, "latent_image": latent, **settings}
        return comfy.run("KSampler", model=model or loaded[0], **inputs)[0]["samples"]

    return run


def test_the_canny_node_makes_the_hints_of_the_training(comfy):
    from weft.training.control_settings import EdgeHints
    from weft.training.control_task import edges_of

    pictures = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    found = comfy.run("Canny", image=pictures, low_threshold=0.3, high_threshold=0.6)[0]
    expected = edges_of(pictures.movedim(-1, 1), EdgeHints(low_threshold=0.3, high_threshold=0.6))
    assert 0.05 < expected.mean() < 0.5
    assert torch.equal(found.movedim(-1, 1), expected.expand(-1, 3, -1, -1))


def test_the_core_computes_what_was_trained(loaded, control_net, networks):
    """Without a number of heads in the file."""
    import comfy.model_management as management

    image, network = networks
    generator = torch.Generator().manual_seed(1)
    # Large enough for four levels: a norm over very few values that are nearly equal multiplies their rounding.
    shapes = (2, 8, 32, 32), (2, 12, 12), (2, 3, 256, 256)
    x, text, hints = (torch.randn(shape, generator=generator) for shape in shapes)
    times = torch.tensor([10, 700])
    management.load_models_gpu([loaded[0]])
    model = loaded[0].model
    sigmas = model.model_sampling.sigma(times)
    applied = control_net.copy().set_cond_hint(hints)
    applied.pre_run(model, model.model_sampling.percent_to_sigma)
    noisy = x * (sigmas**2 + 1).sqrt().view(-1, 1, 1, 1)
    added = applied.get_control(noisy, sigmas, {"c_crossattn": text}, 1, {})
    found = model.diffusion_model(x, times, context=text, control=added)
    expected = network(image.unet, x[:, :, None], times, text, hints[:, None])[:, :, 0]
    alone = image(x[:, :, None], times, text)[:, :, 0]
    assert (expected - alone).std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_hints_change_the_picture_and_strength_says_how_much(sample, control_net, hints):
    free, full = sample(), sample(control_net, hints)
    assert full.isfinite().all() and (full - free).abs().mean() > 0.01
    assert torch.equal(sample(control_net, hints, strength=0.0), free)
    weak = sample(control_net, hints, strength=0.01)
    assert 0 < (weak - free).abs().mean() < (full - free).abs().mean() / 10
    # The same object once more, and another hint.
    assert torch.equal(sample(control_net, hints), full)
    assert (sample(control_net, hints.flip(0)) - full).abs().amax() > 1e-3
    assert torch.equal(sample(), free)


def test_chosen_frames_alone_are_hinted(comfy, sample, control_net, hints):
    free, full = sample(), sample(control_net, hints)
    some = comfy.run("WeftControlNetOnFrames", control_net=control_net, frames="0, 2")[0]
    found = sample(some, hints[[0, 2]])
    torch.testing.assert_close(found[[0, 2]], full[[0, 2]], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], free[1], rtol=0, atol=1e-4)
    assert ((full - free).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_frames_of_a_moving_image_model_are_hinted(comfy, loaded, sample, control_net, hints):
    from weft.kernels.networks.harivo import MappingConfig, MotionConfig, MotionNetwork
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.harivo import save_motion

    folder = comfy.base / "models" / "animatediff_models"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    with torch.inference_mode(False):
        mapping = MappingConfig(8, heads=2, head_width=4)
        network = MotionNetwork(MotionConfig((32, 32, 64, 64), 1, max_frames=8, mapping=mapping))
        for weight in network.parameters():
            weight.requires_grad_(False).normal_(0.0, 0.05)
        save_motion(folder / "controlled.safetensors", network, NoiseSchedule(0.00085, 0.012, spacing="even"))
    motion = comfy.run("WeftLoadMotion", motion="controlled.safetensors")[0]
    moving = comfy.run("WeftHarivoApply", model=loaded[0], motion=motion)[0]
    some = comfy.run("WeftControlNetOnFrames", control_net=control_net, frames="0, 2")[0]
    free, found = sample(model=moving), sample(some, hints[[0, 2]], model=moving)
    assert found.isfinite().all() and not torch.equal(free, sample())
    changed = (found - free).abs().mean(dim=(1, 2, 3))
    assert changed[0] > changed[1] and changed[2] > changed[1] > 0, "the free frame changes by what the others tell it"
