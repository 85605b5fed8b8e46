"""An image model of this pack is a stock Stable Diffusion 1.5 to ComfyUI, whatever its size."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

TEXT = "a red circle moves left to right over a dark background"


@pytest.fixture(scope="module")
def networks(comfy):
    """Networks of two small image models, base and tuned, with random weights, and the parts that they share."""
    from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
    from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
    from weft.model_loaders.image_unet import ImageUNetConfig
    from weft.training.image_unet import ImageUNet

    torch.manual_seed(2)
    with torch.inference_mode(False):
        config = ImageUNetConfig(8, 32, (1, 1, 2, 2), 1, (1, 2, 4), context_width=12, heads=2)
        base, tuned = (ImageUNet(config).eval().requires_grad_(False) for _ in range(2))
        words = ("a", "red", "circle", "moves", "left to right", "over", "dark", "background")
        text = CaptionEncoder(CaptionEncoderConfig(words, width=12, layers=1, heads=2, max_tokens=12))
        sizes = VideoAutoencoderConfig(
            n_hiddens=4, downsample=(1, 8, 8), z_channels=8, embed_dim=8, norm_groups=4, framewise=True
        )
        vae = VideoAutoencoder(sizes).eval().requires_grad_(False)
    return base, tuned, {"text_encoder": text, "vae": vae}


@pytest.fixture(scope="module")
def files(comfy, networks):
    """Both models as files in full precision, and their difference as LoRA files of full and of no rank to speak of."""
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.checkpoint import LatentSpec
    from weft.training.image_unet import component_of
    from weft.training.lora import lora_between

    base, tuned, parts = networks
    latent = LatentSpec(8, 8, 1, 1.5, -0.1, dimensions=2)
    facts = {"latent": latent, "schedule": NoiseSchedule(0.00085, 0.012), "metadata": {}, "dtype": torch.float32}
    with torch.inference_mode(False):
        for name, network in (("base", base), ("tuned", tuned)):
            path = comfy.base / "models" / "checkpoints" / f"image_{name}.safetensors"
            save_bundle(path, {"diffusion_model": component_of(network), **parts}, system="image", **facts)
        (comfy.base / "models" / "loras").mkdir(exist_ok=True)
        lora = {name: tensor.contiguous() for name, tensor in lora_between(base, tuned, 1000).items()}
        save_file(lora, comfy.base / "models" / "loras" / "style.safetensors")


@pytest.fixture
def loaded(comfy, files):
    """MODEL, CLIP and VAE of the base."""
    return comfy.run("WeftLoadCheckpoint", checkpoint="image_base.safetensors")


@pytest.fixture
def sample(comfy):
    """Sample by the stock KSampler from the stock empty latent; LATENT's samples."""

    def run(model, clip, **changed):
        positive, negative = (comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in (TEXT, ""))
        latent = comfy.run("EmptyLatentImage", width=64, height=64, batch_size=3)[0]
        inputs = {"positive": positive, "negative": negative, "latent_image": latent, "seed": 3, "steps": 3, "cfg": 3.0}
        inputs |= {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return comfy.run("KSampler", model=model, **{**inputs, **changed})[0]["samples"]

    return run


def predicted(model, x, text):
    """What the network of a MODEL predicts, with its patches in place."""
    import comfy.model_management as management

    management.load_models_gpu([model])
    return model.model.diffusion_model(x, torch.tensor([10.0, 700.0]), context=text)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    # Large enough for four levels: a norm over very few values that are nearly equal multiplies their rounding.
    return torch.randn(2, 8, 32, 32, generator=generator), torch.randn(2, 12, 12, generator=generator)


def assert_same_as_diffusers(model, network, inputs):
    x, text = inputs
    expected = network(x[:, :, None], torch.tensor([10, 700]), text)[:, :, 0]
    assert expected.std() > 0.05
    # Two implementations in float32, about fifty layers deep.
    torch.testing.assert_close(predicted(model, x, text), expected, atol=2e-5, rtol=1e-4)


def test_the_network_is_the_stock_one_and_predicts_what_was_trained(loaded, networks, inputs):
    from comfy import supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    inner = loaded[0].model
    assert isinstance(inner.model_config, supported_models.SD15) and type(inner.diffusion_model) is UNetModel
    assert inner.concat_keys == () and inner.model_config.unet_config["context_dim"] == 12
    assert_same_as_diffusers(loaded[0], networks[0], inputs)


def test_a_lora_of_full_rank_makes_it_the_other_model(comfy, loaded, networks, inputs, caplog):
    model = comfy.run("LoraLoaderModelOnly", model=loaded[0], lora_name="style.safetensors", strength_model=1.0)[0]
    assert "not loaded" not in caplog.text
    assert_same_as_diffusers(model, networks[1], inputs)
    assert_same_as_diffusers(loaded[0], networks[0], inputs)


def test_schedule_and_latents_are_those_of_the_file(loaded):
    from weft.kernels.sampling.schedules import NoiseSchedule

    model = loaded[0]
    sigmas = model.get_model_object("model_sampling").sigmas
    torch.testing.assert_close(sigmas.double(), NoiseSchedule(0.00085, 0.012).sigmas(), rtol=1e-5, atol=0)
    latent = model.get_model_object("latent_format")
    assert (latent.latent_channels, latent.latent_dimensions, latent.spacial_downscale_ratio) == (8, 2, 8)
    x = torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(latent.process_in(x), (x - 0.1) * 1.5)
    torch.testing.assert_close(latent.process_out(latent.process_in(x)), x)


def test_pictures_are_sampled_decoded_and_encoded(comfy, loaded, sample, networks):
    model, clip, vae = loaded
    samples = sample(model, clip)
    assert samples.shape == (3, 8, 8, 8) and samples.isfinite().all()
    images = comfy.run("VAEDecode", samples={"samples": samples}, vae=vae)[0]
    assert images.shape == (3, 64, 64, 3)
    network = networks[2]["vae"]
    expected = (network.decode(samples[:, :, None])[:, :, 0].movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    latent = comfy.run("VAEEncode", pixels=images, vae=vae)[0]["samples"]
    mean = network.encode((images * 2 - 1).movedim(-1, 1)[:, :, None])[:, :, 0]
    torch.testing.assert_close(latent, mean, atol=1e-5, rtol=0)
    tiled = comfy.run("VAEDecodeTiled", samples={"samples": samples}, vae=vae, tile_size=512)[0]
    torch.testing.assert_close(tiled, images, atol=1e-4, rtol=0)


def test_saved_parts_load_again(comfy, loaded, sample):
    model, clip, vae = loaded
    before = sample(model, clip)
    comfy.run("CheckpointSave", model=model, clip=clip, vae=vae, filename_prefix="saved_image")
    again = comfy.run("WeftLoadCheckpoint", checkpoint=comfy.saved("checkpoints", "saved_image"))
    assert torch.equal(sample(*again[:2]), before)
    comfy.run("ModelSave", model=model, filename_prefix="saved_image_model")
    name = comfy.saved("diffusion_models", "saved_image_model")
    assert torch.equal(sample(comfy.run("WeftLoadDiffusionModel", model_name=name)[0], clip), before)
    comfy.run("VAESave", vae=vae, filename_prefix="saved_image_vae")
    again = comfy.run("WeftLoadVAE", vae_name=comfy.saved("vae", "saved_image_vae"))[0]
    images = [comfy.run("VAEDecode", samples={"samples": before}, vae=found)[0] for found in (vae, again)]
    assert torch.equal(*images)


def test_latents_and_text_of_other_models_are_refused(comfy, loaded, sample):
    model, clip, vae = loaded
    for shape in ((1, 4, 8, 8), (1, 8, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"makes pictures and needs a latent \(batch, 8, height, width\), found"):
            sample(model, clip, latent_image={"samples": torch.ones(shape)})
        with pytest.raises(ValueError, match=r"decodes latents of pictures \(batch, 8, height, width\), found"):
            comfy.run("VAEDecode", samples={"samples": torch.ones(shape)}, vae=vae)
    with pytest.raises(ValueError, match=r"text has width 16, this model was made for 12.*image_base"):
        sample(model, clip, positive=[[torch.zeros(1, 12, 16), {}]])
    with pytest.raises(ValueError, match="makes images.*Empty Latent Image"):
        comfy.run("WeftEmptyVideoLatent", model=model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("diffusion_model.out.2.bias"), r"out.2.bias \(8,\) is missing"),
        (lambda tensors: tensors.update({"diffusion_model.more": torch.zeros(1)}), r"more \(1,\) is unexpected"),
    ],
)
def test_incomplete_files_are_refused(comfy, files, change, message):
    from safetensors import safe_open

    folder = comfy.base / "models" / "checkpoints"
    tensors = load_file(folder / "image_base.safetensors")
    change(tensors)
    with safe_open(folder / "image_base.safetensors", "pt") as file:
        save_file(tensors, folder / "image_bad.safetensors", file.metadata())
    errors = comfy.ours("model_loaders.errors")
    with pytest.raises(errors.CheckpointError, match=f"image_bad.safetensors does not fit UNetModel: {message}"):
        comfy.run("WeftLoadCheckpoint", checkpoint="image_bad.safetensors")


def test_the_embedded_style_changes_how_the_embedded_model_draws(comfy, sample):
    """Objects lit from below: their lower half is brighter than the upper one, by 0.17 in 24 videos."""
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint="harivo_image.safetensors", weights="training")
    styled = comfy.run("LoraLoaderModelOnly", model=model, lora_name="harivo_style.safetensors", strength_model=1.0)[0]
    ratios = []
    for found in (model, styled):
        latent = sample(found, clip, steps=12, cfg=2.0)
        frames = comfy.run("VAEDecode", samples={"samples": latent}, vae=vae)[0]
        red = frames[..., 0] - frames[..., 1:].mean(dim=-1)
        halves = []
        for picture, place in zip(frames[..., 0], red > 0.25, strict=True):
            rows = place.nonzero()[:, 0]
            assert len(rows), "nothing red in the picture"
            middle = int(rows.float().mean())
            upper, lower = picture[:middle][place[:middle]], picture[middle + 1 :][place[middle + 1 :]]
            halves.append(float(lower.mean() / upper.mean()))
        ratios.append(sum(halves) / len(halves))
    assert ratios[1] > ratios[0] + 0.1, ratios
    assert "loras/harivo_style.safetensors" not in comfy.ours("nodes.folders").choices("checkpoints")
    assert "controlnet/harivo_edges.safetensors" not in comfy.ours("nodes.folders").choices("controlnet")


def test_it_can_be_made_to_move(comfy, loaded, sample):
    from weft.kernels.networks.harivo import MappingConfig, MotionConfig, MotionNetwork
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.harivo import save_motion

    described = MotionConfig(widths=(32, 32, 64, 64), max_frames=8, mapping=MappingConfig(heads=2, head_width=4))
    described = dataclasses.replace(described, blocks_per_level=1)
    described = dataclasses.replace(described, mapping=dataclasses.replace(described.mapping, channels=8))
    folder = comfy.base / "models" / "animatediff_models"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    with torch.inference_mode(False):
        network = MotionNetwork(described).eval().requires_grad_(False)
        for weight in network.parameters():
            weight.normal_(0.0, 0.1)
        save_motion(folder / "image.safetensors", network, NoiseSchedule(0.00085, 0.012, spacing="even"))
    motion = comfy.run("WeftLoadMotion", motion="image.safetensors")[0]
    moved = comfy.run("WeftHarivoApply", model=loaded[0], motion=motion)[0]
    still, video = (sample(model, loaded[1]) for model in (loaded[0], moved))
    assert video.shape == still.shape and video.isfinite().all()
    assert (video - still).abs().mean() > 0.01
