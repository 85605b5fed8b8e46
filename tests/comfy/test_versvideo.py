"""VersVideo's files in ComfyUI: a native MODEL that the stock sampler runs."""

import pytest
import torch

FRAMES, SIDE, STEPS, SCALE = 3, 8, 4, 3.0


@pytest.fixture
def trained(comfy):
    """Writes a small denoiser, with experts, as a file of the loader; gives its name and the network."""
    versvideo = comfy.ours("kernels.networks.versvideo")
    files = comfy.ours("model_loaders.versvideo")
    config = versvideo.VersVideoUNetConfig(
        model_channels=32, channel_mult=(1, 2), attention_factors=(1,), context_width=12, heads=4,
        spatial_experts=3, temporal_experts=2,
    )  # fmt: skip
    path = comfy.base / "models" / "diffusion_models" / "vers.safetensors"
    path.parent.mkdir(exist_ok=True)
    with torch.inference_mode(False):
        torch.manual_seed(0)
        network = versvideo.VersVideoUNet(config).eval()
        files.save_unet(path, network, files.SCHEDULE)
    return "vers.safetensors", network, files.SCHEDULE


@pytest.fixture
def texts():
    generator = torch.manual_seed(1)
    return [[[torch.randn(1, 77, 12, generator=generator), {}]] for _ in range(2)]


def by_hand(network, schedule, positive, negative, seed):
    """Euler on every 250th noise level with guidance, in plain torch: latents of the VAE's scale."""
    levels = schedule.sigmas()
    places = [999 - int(step * 1000 / STEPS) for step in range(STEPS)]
    noise = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=torch.manual_seed(seed))
    x = noise * (1 + levels[places[0]] ** 2).sqrt().float()
    for step, place in enumerate(places):
        sigma, after = (
            levels[place].float(),
            (levels[places[step + 1]] if step + 1 < STEPS else torch.zeros(())).float(),
        )
        spread = (1 + sigma**2).sqrt()
        time = torch.tensor([float(place)])
        velocities = [network(x / spread, time, text[0][0]) for text in (positive, negative)]
        wanted, other = (x / spread**2 - velocity * sigma / spread for velocity in velocities)
        clean = other + SCALE * (wanted - other)
        x = x + (x - clean) / sigma * (after - sigma)
    return x / 0.18215


def sampled(comfy, model, positive, negative, seed=5):
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=8 * SIDE, height=8 * SIDE, frames=FRAMES)[0]
    return comfy.run(
        "KSampler", model=model, seed=seed, steps=STEPS, cfg=SCALE, sampler_name="euler", scheduler="simple",
        positive=positive, negative=negative, latent_image=latent, denoise=1.0,
    )[0]["samples"]  # fmt: skip


def test_the_stock_sampler_is_the_loop_by_hand(comfy, trained, texts):
    """Experts of the file are merged in the MODEL; the network that has them takes their mean by itself."""
    name, network, schedule = trained
    model = comfy.run("WeftLoadDiffusionModel", model_name=name)[0]
    inner = model.model.diffusion_model
    assert not [key for key in inner.state_dict() if ".experts." in key]
    found = sampled(comfy, model, *texts)
    expected = by_hand(network, schedule, *texts, seed=5)
    assert found.shape == expected.shape == (1, 4, FRAMES, SIDE, SIDE)
    # Four steps of float32, guided, where pairs are computed together or one by one.
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    assert (sampled(comfy, model, *reversed(texts)) - expected).std() > 0.01 * expected.std()


def test_every_weight_is_one_that_comfyui_can_move_and_cast(comfy, trained, texts):
    name, *_ = trained
    model = comfy.run("WeftLoadDiffusionModel", model_name=name)[0]
    holders = [part for part in model.model.diffusion_model.modules() if [*part.parameters(recurse=False)]]
    assert holders and all(hasattr(part, "comfy_cast_weights") for part in holders)
    assert not [*model.model.diffusion_model.buffers()]
    # Weights in bf16 that are cast at every use are those of a model in fp32 with rounded weights.
    ours = comfy.ours("model_loaders.bridge.model")
    path = str(comfy.base / "models" / "diffusion_models" / name)
    cast, rounded = (ours.load_model(path, ours.LoadOptions(dtype=kind)) for kind in (torch.bfloat16, torch.float32))
    assert cast.model.manual_cast_dtype == torch.float32
    for parameter in rounded.model.diffusion_model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    x = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=torch.manual_seed(0))
    outputs = [
        patcher.model.apply_model(x, torch.tensor([2.0]), c_crossattn=texts[0][0][0]) for patcher in (cast, rounded)
    ]
    assert torch.equal(*outputs)


def test_load_checkpoint_and_save(comfy, trained, tmp_path):
    """With the text encoder and the VAE of another model of ours; what the core's node saves is read again."""
    from dataclasses import replace

    checkpoints, bundle = comfy.ours("model_loaders.checkpoint"), comfy.ours("model_loaders.bundle")
    versvideo, files = comfy.ours("kernels.networks.versvideo"), comfy.ours("model_loaders.versvideo")
    toy = checkpoints.read(comfy.base / "models" / "checkpoints" / "toy.safetensors")
    width = toy.component("text_encoder").config.width
    config = versvideo.VersVideoUNetConfig(
        model_channels=32, channel_mult=(1, 2), attention_factors=(1,), context_width=width, heads=4
    )
    with torch.inference_mode(False):
        torch.manual_seed(0)
        network = versvideo.VersVideoUNet(config)
    path = comfy.base / "models" / "checkpoints" / "vers_bundle.safetensors"
    parts = {**toy.components, "diffusion_model": network}
    bundle.save_bundle(path, parts, system="versvideo", latent=toy.latent, schedule=files.SCHEDULE, metadata={})
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint=path.name)
    texts = [comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", "")]
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=4)[0]
    settings = {"seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    given = {"positive": texts[0], "negative": texts[1], "latent_image": latent, **settings}
    found = comfy.run("KSampler", model=model, **given)[0]
    assert found["samples"].isfinite().all() and found["samples"].std() > 0
    assert comfy.run("VAEDecode", samples=found, vae=vae)[0].shape[1:] == (64, 64, 3)
    comfy.run("ModelSave", model=model, filename_prefix="saved_vers")
    again = comfy.run("WeftLoadDiffusionModel", model_name=comfy.saved("diffusion_models", "saved_vers"))[0]
    assert replace(again.model.checkpoint, name="", metadata={}).schedule == files.SCHEDULE
    torch.testing.assert_close(
        comfy.run("KSampler", model=again, **given)[0]["samples"], found["samples"], rtol=0, atol=1e-4
    )
