"""Show-1's expert translation with video models of this pack and of the core."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from weft.kernels.sampling import cascade

SEED = 7
TEXTS = {kind: torch.randn(1, 7, 24, generator=torch.manual_seed(n)) for n, kind in enumerate(("yes", "no"))}
TEXT = {"positive": [[TEXTS["yes"], {}]], "negative": [[TEXTS["no"], {}]]}


@pytest.fixture
def expert(comfy):
    """A tiny network in the layout of Show-1's second super-resolution: MODEL, and the network in float64."""
    from weft.kernels.networks.higen import SpaceTimeUNet, SpaceTimeUNetConfig

    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (1,)}
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = SpaceTimeUNet(SpaceTimeUNetConfig(**small, head_width=8, context_width=24)).eval()
        # A random network's walk is chaos, where rounding grows without bounds; a quiet one's is not.
        network.conv_out.weight.data.mul_(0.1)
        folder = comfy.base / "models" / "diffusion_models"
        folder.mkdir(exist_ok=True)
        save_file(network.state_dict(), folder / "tiny_expert.safetensors")
        network = copy.deepcopy(network).double()
    return comfy.run("WeftLoadDiffusionModel", model_name="tiny_expert.safetensors", dtype="fp32")[0], network


def frames(count):
    return torch.rand(count, 16, 24, 3, generator=torch.manual_seed(3))


@pytest.fixture
def translate(comfy, expert, image_vae):
    def run(**changed):
        inputs = {"model": expert[0], "vae": image_vae, "images": frames(3), **TEXT, "width": 64, "height": 32}
        inputs |= {"steps": 10, "seed": SEED, "cfg": 3.0}
        return comfy.run("WeftShow1ExpertTranslation", **{**inputs, **changed})[0]["samples"]

    return run


def released(network, latents, steps, strength, guidance):
    """Noise drawn frame by frame, then DPM-Solver++ 2M from the start step on, in its own scale."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, 0)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    log_snr = a.log() - s.log()
    times = torch.linspace(0, 999, steps + 1).round().long().flip(0).tolist()[steps - int(steps * strength) :]
    noise = torch.randn(3, 4, 4, 8, generator=torch.Generator().manual_seed(SEED)).double().movedim(0, 1)[None]
    x, before = a[times[0]] * latents.double() + s[times[0]] * noise, None
    for t, p in zip(times, times[1:], strict=False):
        time = torch.full((1,), float(t), dtype=torch.float64)
        yes, no = (network(x, time, TEXTS[kind].double()) for kind in ("yes", "no"))
        m = (x - s[t] * (no + guidance * (yes - no))) / a[t]
        h, d = log_snr[p] - log_snr[t], m
        if before is not None and not (p == 0 and steps < 15):
            d = m + 0.5 * (h / (log_snr[t] - log_snr[before[0]])) * (m - before[1])
        x, before = (s[p] / s[t]) * x - a[p] * (torch.exp(-h) - 1) * d, (t, m)
    return x


@pytest.mark.parametrize(("steps", "strength"), [(10, 0.8), (20, 0.5)])
def test_walk_of_the_release(expert, translate, image_vae, steps, strength):
    """Within 1e-3 of the latents' spread."""
    pictures = cascade.resized(frames(3), 64, 32)
    latents = image_vae.encode(pictures).movedim(0, 1)[None]
    found = translate(steps=steps, strength=strength)
    expected = released(expert[1], latents * 0.18215, steps, strength, 3.0)
    torch.testing.assert_close(found.double() * 0.18215, expected, rtol=0, atol=1e-3 * float(expected.std()))


def test_seed_strength_and_samplers(comfy, translate):
    base = translate()
    assert base.shape == (1, 4, 3, 4, 8) and torch.equal(base, translate())
    assert (base - translate(seed=SEED + 1)).abs().mean() > 0.1
    weak = translate(strength=0.1)
    source = translate(strength=0.01, steps=100)
    assert (weak - source).abs().mean() < 0.5 * (base - source).abs().mean(), "less strength keeps more"
    sampler = comfy.run("KSamplerSelect", sampler_name="euler")[0]
    assert not torch.equal(translate(sampler=sampler), base)


def test_windows_in_time_and_tiles_in_space(translate):
    """A window as long as the video changes nothing; shorter ones are seen by the network one by one."""
    assert torch.equal(translate(window=3, overlap=1), translate())
    windowed = translate(images=frames(6), window=4, overlap=2)
    assert windowed.shape == (1, 4, 6, 4, 8) and windowed.isfinite().all()
    assert (windowed - translate(images=frames(6))).abs().max() > 1e-4
    tiled = translate(width=128, height=64, tile=64)
    assert tiled.shape == (1, 4, 3, 8, 16) and tiled.isfinite().all()


def test_the_network_sees_windows(expert, translate):
    from comfy.patcher_extension import WrappersMP

    model, seen = expert[0].clone(), []

    def look(executor, x, *args, **kwargs):
        seen.append(x.shape[2])
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    translate(model=model, images=frames(6), window=4, overlap=2, steps=2, strength=1.0)
    assert set(seen) == {4} and "context_handler" not in model.model_options


@pytest.mark.parametrize("kind", ["wan", "cogvideo"])
def test_video_models_of_the_core(comfy, core_models, translate, kind):
    """Flow, and velocity with a zero terminal ratio: Euler on the model's own levels."""
    from comfy.sd import VAE
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    weights = {name: torch.randn(tensor.shape) for name, tensor in TAESD(latent_channels=16).state_dict().items()}
    weights = {name: tensor * max(1, tensor[0].numel()) ** -0.5 for name, tensor in weights.items() if tensor.ndim}
    model, shape = core_models[kind]()
    text = [[torch.randn(1, 8, 12), {}]]
    inputs = {"model": model, "vae": VAE(sd=weights), "images": frames(shape[2]), "width": 64, "height": 64}
    found = translate(**inputs, positive=text, negative=text, steps=4)
    assert found.shape == shape and found.isfinite().all()
    assert not torch.equal(found, translate(**inputs, positive=text, negative=text, steps=4, seed=SEED + 1))


def test_lvdm_and_its_video_vae(toy, translate):
    images = torch.rand(16, 40, 40, 3, generator=torch.manual_seed(2))
    text = {"positive": toy.positive, "negative": toy.negative}
    found = translate(model=toy.model, vae=toy.vae, images=images, width=64, height=64, **text)
    assert found.shape == (1, 4, 4, 8, 8) and found.isfinite().all()


def test_interrupted_and_queued_again(expert, translate, interrupting):
    model, after = interrupting(expert[0])
    fresh = translate(model=model, steps=5)
    with after(3):
        translate(model=model, steps=5)
    assert torch.equal(translate(model=model, steps=5), fresh)


def test_higen_works_around_a_picture(comfy, translate, image_vae):
    """Its MODEL alone takes one frame; with the cues of HiGen Temporal Reasoning as many as these are made for."""
    from weft.kernels.networks.higen import HiGenUNet, HiGenUNetConfig

    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (1,)}
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = HiGenUNet(HiGenUNetConfig(**small, head_width=8, context_width=24, text_width=24, resampled_tokens=5))
        folder = comfy.base / "models" / "diffusion_models"
        folder.mkdir(exist_ok=True)
        save_file(network.state_dict(), folder / "tiny_higen_expert.safetensors")
    model = comfy.run("WeftLoadDiffusionModel", model_name="tiny_higen_expert.safetensors", dtype="fp32")[0]
    assert translate(model=model, images=frames(1), steps=3).shape == (1, 4, 1, 4, 8)
    with pytest.raises(
        ValueError, match="makes videos around a picture, and was given none: sample the MODEL of HiGen"
    ):
        translate(model=model, steps=3)
    prior = {"samples": image_vae.encode(cascade.resized(frames(3), 64, 32)).movedim(0, 1)[None][:, :, 1:2]}
    content = comfy.run("WeftHiGenContent", motion="300", appearance=0.8, frames=3)[0]
    guided = comfy.run("WeftHiGenTemporalReasoning", model=model, prior=prior, content=content)[0]
    found = translate(model=guided, steps=3)
    assert found.shape == (1, 4, 3, 4, 8) and found.isfinite().all()
    assert not torch.equal(found, translate(model=guided, steps=3, seed=SEED + 1))
    with pytest.raises(ValueError, match="ends at pure noise, .* a strength below 1"):
        translate(model=guided, steps=3, strength=1.0)


# Refusals, before any work


def test_bad_input(comfy, core_models, toy, translate):
    with pytest.raises(ValueError, match="width x height is 60x32, this model takes multiples of 8: choose 64x32"):
        translate(width=60)
    with pytest.raises(ValueError, match="overlap is 4, the window 4: choose a smaller overlap"):
        translate(window=4, overlap=4)
    with pytest.raises(ValueError, match="text has width 32, this model was made for 24"):
        translate(positive=toy.positive)
    with pytest.raises(ValueError, match=r"Found a model of images \(BaseModel\), whose latents have no time axis"):
        translate(model=core_models["images"]()[0])
    with pytest.raises(ValueError, match=r"VAE makes latents of 4 channels, the model takes 16: use the VAE"):
        translate(model=core_models["wan"]()[0])
