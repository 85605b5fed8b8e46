"""Show-1's stages as native models, and the nodes that do a stage's work, against loops written from its release."""

import copy

import pytest
import torch

SMALL = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": (1, 1), "attention_factors": (2,)}
SMALL |= {"embedding_width": 32, "text_width": 20, "context_width": 32, "pooling_heads": 4, "head_width": 16}
SMALL |= {"temporal_heads": 4}
UPSCALER = {"in_channels": 6, "noise_levels": 1000, "residual_divisor": 1.4142271248762552}
STAGES = {
    "base": {},
    "interpolation": {"in_channels": 7},
    "sr1": UPSCALER,
    "first frame": {**UPSCALER, "temporal": False},
}
SEED = 345
TEXTS = {kind: torch.randn(1, 6, 20, generator=torch.manual_seed(n)) for n, kind in enumerate(("yes", "no"))}
TEXT = {"positive": [[TEXTS["yes"], {}]], "negative": [[TEXTS["no"], {}]]}
# Of whole walks, absolute: ComfyUI samples in float32 on another scale, with noise of up to 160 per unit of signal,
# which costs 1e-4; a float32 network in the loop of the release costs 4e-5.
TOLERANCE = {"rtol": 0, "atol": 3e-4}


@pytest.fixture
def loaded(comfy):
    """Loads a tiny network of a stage from a file; gives MODEL and the network in float64."""
    from weft.kernels.networks.show1 import PixelUNet, PixelUNetConfig
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.show1 import LATENT, SCHEDULES

    def load(stage, **changed):
        torch.manual_seed(len(stage))
        with torch.inference_mode(False):
            network = PixelUNet(PixelUNetConfig(**{**SMALL, **STAGES[stage], **changed})).eval()
            # A random network's walk is chaos, where rounding grows without bounds; a quiet one's is not.
            network.conv_out.weight.data.mul_(0.1)
            name = f"tiny_{stage.replace(' ', '_')}.safetensors"
            described = {"system": "show1", "latent": LATENT, "schedule": SCHEDULES[stage], "metadata": {}}
            path = comfy.base / "models" / "diffusion_models" / name
            save_bundle(path, {"diffusion_model": network}, **described, dtype=torch.float32)
            network = copy.deepcopy(network).double()
        return comfy.run("WeftLoadDiffusionModel", model_name=name, dtype="fp32")[0], network

    return load


def table():
    """abar of squaredcos_cap_v2."""
    time = torch.arange(1001, dtype=torch.float64) / 1000
    f = ((time + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    return torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)


def predicted(network, x, t, guidance, **given):
    """Guided prediction, and the variance of the positive half."""
    time = torch.full((len(x),), t, dtype=torch.float64)
    yes, no = (network(x, time, TEXTS[kind].double().expand(len(x), -1, -1), **given) for kind in ("yes", "no"))
    return no[:, :3] + guidance * (yes[:, :3] - no[:, :3]), yes[:, 3:]


def walk(network, noise, steps, guidance, largest, shown=None, velocity=False, **given):
    """DPM-Solver++ 2M as released, in its own scale."""
    abar, x, before = table(), noise.double(), None
    a, s = abar.sqrt(), (1 - abar).sqrt()
    log_snr = a.log() - s.log()
    times = torch.linspace(0, 995, steps + 1).round().long().flip(0).tolist()
    for t, p in zip(times, times[1:], strict=False):
        seen = x if shown is None else torch.cat([x, shown.double()], 1)
        out, _ = predicted(network, seen, t, guidance, **given)
        m = a[t] * x - s[t] * out if velocity else (x - s[t] * out) / a[t]
        q = m.transpose(1, 2).flatten(2).abs().quantile(0.95, dim=2).clamp(1, largest)[:, None, :, None, None]
        m = m.clamp(-q, q) / q
        h, d = log_snr[p] - log_snr[t], m
        if before is not None and not (p == 0 and steps < 15):
            d = m + 0.5 * (h / (log_snr[t] - log_snr[before[0]])) * (m - before[1])
        x, before = (s[p] / s[t]) * x - a[p] * (torch.exp(-h) - 1) * d, (t, m)
    return x


def drawn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# Native models


@pytest.mark.parametrize("stage", STAGES)
def test_one_step_is_the_network(comfy, loaded, stage):
    """Noise or velocity on the cosine schedule, without the variance behind it."""
    model, network = loaded(stage)
    frames = 1 if stage == "first frame" else 3
    x, shown = torch.randn(2, 3, frames, 8, 4), torch.randn(2, STAGES[stage].get("in_channels", 3) - 3, frames, 8, 4)
    level = torch.tensor([250, 250]) if STAGES[stage].get("noise_levels") else None
    given = {} if level is None else {"noise_level": level}
    abar = table()[500]
    sigma = ((1 - abar) / abar).sqrt().float()
    text = TEXTS["yes"].expand(2, -1, -1)
    concat = shown if shown.shape[1] else None
    found = model.model.apply_model(x, sigma.expand(2), c_concat=concat, c_crossattn=text, **given)
    noisy = x.double() * abar.sqrt()
    time = torch.full((2,), 500.0, dtype=torch.float64)
    out = network(torch.cat([noisy, shown.double()], 1), time, text.double(), **given)[:, :3]
    expected = abar.sqrt() * noisy - (1 - abar).sqrt() * out if stage == "sr1" else x - sigma * out
    assert found.shape == x.shape
    # ComfyUI finds the timestep of a float32 sigma; float32 against float64.
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_stock_samplers_and_a_stock_vae(comfy, loaded, sampler):
    model, _ = loaded("base")
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=16, height=8, frames=3)[0]
    settings = {"seed": 1, "steps": 3, "cfg": 2.0, "sampler_name": sampler, "scheduler": "normal"}
    found = comfy.run("KSampler", model=model, **TEXT, latent_image=latent, **settings)[0]
    samples = found["samples"]
    assert samples.shape == (1, 3, 3, 8, 16) and samples.isfinite().all() and samples.std() > 0.1
    stock = comfy.run("WeftFramewiseVAE", vae=comfy.run("VAELoader", vae_name="pixel_space")[0])[0]
    images = comfy.run("VAEDecode", vae=stock, samples=found)[0]
    expected = (samples[0].movedim(0, -1) * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    back = comfy.run("VAEEncode", vae=stock, pixels=images)[0]["samples"]
    torch.testing.assert_close(back, samples.clamp(-1, 1), rtol=0, atol=1e-6)


def test_one_file_has_a_vae_of_pixels(comfy, loaded):
    """Load Checkpoint gives all three of a stage's file; the VAE changes the range alone."""
    loaded("base")
    folder = comfy.base / "models"
    target = folder / "checkpoints" / "tiny_base.safetensors"
    target.write_bytes((folder / "diffusion_models" / "tiny_base.safetensors").read_bytes())
    _, _, vae = comfy.run("WeftLoadCheckpoint", checkpoint="tiny_base.safetensors")
    video = torch.rand(1, 3, 2, 6, 4) * 2 - 1
    images = comfy.run("VAEDecode", vae=vae, samples={"samples": video})[0]
    torch.testing.assert_close(images, (video[0].movedim(0, -1) + 1) / 2, rtol=0, atol=1e-6)


def test_conditioning_channels_reach_the_network(comfy, loaded):
    import node_helpers
    from comfy.patcher_extension import WrappersMP

    model, _ = loaded("interpolation")
    seen = []

    def look(executor, x, *args, **kwargs):
        seen.append(x[:, 3:].clone())
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    shown, mask = torch.rand(1, 3, 5, 4, 4), torch.zeros(1, 1, 5, 4, 4)
    mask[:, :, [0, 4]] = 1.0
    latent = {"samples": torch.zeros(1, 3, 5, 4, 4)}
    settings = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    values = {"concat_latent_image": shown, "concat_mask": mask}
    text = {name: node_helpers.conditioning_set_values(part, values) for name, part in TEXT.items()}
    comfy.run("KSampler", model=model, **text, latent_image=latent, **settings)
    assert torch.equal(seen.pop(), torch.cat([shown, mask], 1)), "as given: no scale, no rounding"
    with pytest.raises(ValueError, match="works from a given video, and found none in the conditioning: use the node"):
        comfy.run("KSampler", model=model, **TEXT, latent_image=latent, **settings)
    values["concat_latent_image"] = shown[:, :, :4]
    text = {name: node_helpers.conditioning_set_values(part, values) for name, part in TEXT.items()}
    with pytest.raises(ValueError, match=r"given video has shape \(1, 3, 4, 4, 4\), the latent \(1, 3, 5, 4, 4\)"):
        comfy.run("KSampler", model=model, **text, latent_image=latent, **settings)


@pytest.mark.parametrize("steps", [6, 20])
def test_release_sampler(comfy, loaded, steps):
    """Also where the last step is of first order; guidance as released."""
    model, network = loaded("base")
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=model, kind="dpm-solver++", steps=steps)
    guider = comfy.run("CFGGuider", model=model, **TEXT, cfg=9.0)[0]
    noise = comfy.run("RandomNoise", noise_seed=SEED)[0]
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=8, height=4, frames=3)[0]
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    found = comfy.run("SamplerCustomAdvanced", **inputs)[0]["samples"]
    expected = walk(network, *drawn(SEED, (1, 3, 3, 4, 8)), steps, 9.0, 1.5)
    torch.testing.assert_close(found.double(), expected, **TOLERANCE)


# Nodes


def test_keyframes(comfy, loaded):
    model, network = loaded("base")
    inputs = {"model": model, **TEXT, "width": 8, "height": 4, "frames": 3, "steps": 15, "batch_size": 2}
    latent, images = comfy.run("WeftShow1Keyframes", **inputs, seed=SEED)
    expected = walk(network, *drawn(SEED, (2, 3, 3, 4, 8)), 15, 9.0, 1.5)
    torch.testing.assert_close(latent["samples"].double(), expected, **TOLERANCE)
    assert images.shape == (6, 4, 8, 3) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images[3:], (latent["samples"][1].movedim(0, -1) * 0.5 + 0.5).clamp(0, 1))
    again, other = (comfy.run("WeftShow1Keyframes", **inputs, seed=seed)[0]["samples"] for seed in (SEED, SEED + 1))
    assert torch.equal(again, latent["samples"]), "a cached MODEL remembers nothing of its last walk"
    assert (other - again).abs().mean() > 0.05


@pytest.mark.parametrize("condition", ["released", "paper"])
def test_interpolate(comfy, loaded, condition):
    model, network = loaded("interpolation")
    keys = torch.rand(1, 3, 3, 4, 8, generator=torch.manual_seed(5)) * 2 - 1
    inputs = {"model": model, **TEXT, "steps": 6, "seed": SEED, "condition": condition}
    latent, images = comfy.run("WeftShow1Interpolate", **inputs, keyframes={"samples": keys})
    noise, augmentation = drawn(SEED, (1, 3, 5, 4, 8), (1, 3, 3, 4, 8))
    mask = torch.zeros(1, 1, 5, 4, 8)
    mask[:, :, [0, 4]] = 1.0
    given = 0.845890**0.5 * keys + (1 - 0.845890) ** 0.5 * augmentation if condition == "paper" else keys
    expected = torch.zeros(1, 3, 9, 4, 8, dtype=torch.float64)
    for index in range(2):
        first, last = given[:, :, index], given[:, :, index + 1]
        blend = [(1 - k / 4) * first + k / 4 * last for k in range(5)]
        if condition == "paper":
            blend[1:4] = [torch.zeros_like(first)] * 3
        shown = torch.cat([torch.stack(blend, 2), mask], 1)
        expected[:, :, 4 * index : 4 * index + 5] = walk(network, noise, 6, 4.0, 1.5, shown)
    torch.testing.assert_close(latent["samples"].double(), expected, **TOLERANCE)
    # Pictures are the same keyframes.
    pictures = (keys[0].movedim(0, -1) + 1) / 2
    found, _ = comfy.run("WeftShow1Interpolate", **inputs, keyframes=pictures, keep_keyframes=True)
    torch.testing.assert_close(found["samples"][:, :, ::4], keys, rtol=0, atol=1e-6)
    between = [frame for frame in range(9) if frame % 4]
    torch.testing.assert_close(found["samples"][:, :, between], latent["samples"][:, :, between], **TOLERANCE)
    assert images.shape == (9, 4, 8, 3)


def enlarged(small):
    size = tuple(4 * size for size in small.shape[3:])
    frames = torch.nn.functional.interpolate(small[0].movedim(1, 0), size=size, mode="bilinear", align_corners=True)
    return frames.movedim(0, 1)[None]


def first_frame(network, small, steps, guidance):
    """DeepFloyd IF's ancestral walk with the variance that the network predicts, every k-th timestep down to 0."""
    abar, large = table(), enlarged(small)
    shape, stride = tuple(large.shape), 1000 // steps
    x, noise, *rest = drawn(SEED, *[shape] * (steps + 1))
    x, given = x.double(), 0.94001**0.5 * large + (1 - 0.94001) ** 0.5 * noise
    level = torch.tensor([150])
    for t, step_noise in zip(reversed(range(0, steps * stride, stride)), [*rest, None], strict=True):
        out, v = predicted(network, torch.cat([x, given.double()], 1), t, guidance, noise_level=level)
        now, then = abar[t], abar[t - stride] if t >= stride else torch.ones((), dtype=torch.float64)
        clean = ((x - (1 - now).sqrt() * out) / now.sqrt()).clamp(-1, 1)
        beta = 1 - now / then
        x_next = then.sqrt() * beta / (1 - now) * clean + (1 - beta).sqrt() * (1 - then) / (1 - now) * x
        if step_noise is not None:
            r, low = (v + 1) / 2, (1 - then) / (1 - now) * beta
            x_next = x_next + (0.5 * (r * beta.log() + (1 - r) * low.log())).exp() * step_noise
        x = x_next
    return x[:, :, 0].float()


@pytest.mark.parametrize("with_first", [True, False])
def test_super_resolution(comfy, loaded, with_first):
    model, network = loaded("sr1")
    first_model, first_network = loaded("first frame")
    small = torch.rand(1, 3, 10, 2, 1, generator=torch.manual_seed(6)) * 2 - 1
    inputs = {"model": model, **TEXT, "steps": 5, "seed": SEED, "first_frame_steps": 4}
    inputs |= {"first_frame_model": first_model} if with_first else {}
    latent, images = comfy.run("WeftShow1SuperResolution", **inputs, video={"samples": small})
    noise, augmentation = drawn(SEED, *[(1, 3, 8, 8, 4)] * 2)
    expected = torch.zeros(1, 3, 10, 8, 4, dtype=torch.float64)
    for start in (0, 2):
        given = 0.845890**0.5 * enlarged(small)[:, :, start : start + 8] + (1 - 0.845890) ** 0.5 * augmentation
        if start:
            given[:, :, 0] = expected[:, :, start]
        elif with_first:
            given[:, :, 0] = first_frame(first_network, small[:, :, :1], 4, 4.0)
        level = torch.tensor([250])
        window = walk(network, noise, 5, 7.0, 1.0, given, velocity=True, noise_level=level)
        expected[:, :, start : start + 8] = window
    torch.testing.assert_close(latent["samples"].double(), expected, **TOLERANCE)
    assert images.shape == (10, 8, 4, 3)
    if not with_first:
        alone = comfy.run("WeftShow1SuperResolution", **inputs, video={"samples": small}, carry_frame=False)[0]
        assert torch.equal(alone["samples"][:, :, :2], latent["samples"][:, :, :2])
        assert (alone["samples"] - latent["samples"])[:, :, 2:].abs().max() > 1e-3


def test_saved_by_stock_nodes(comfy, loaded):
    """The text encoder is T5's, the VAE none: all three come back."""
    from transformers import T5Config, T5EncoderModel

    model, _ = loaded("sr1")
    torch.manual_seed(0)
    sizes = {"d_model": 20, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "vocab_size": 32128}
    encoder = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).state_dict()
    checkpoint = comfy.ours("model_loaders.checkpoint")
    part = {checkpoint.TEXT_ENCODER: checkpoint.Component(None, "t5 xxl", encoder)}
    described = checkpoint.Checkpoint("t5", "show1", part, checkpoint.LatentSpec(3, 1, 1))
    clip = comfy.ours("model_loaders.bridge.text").make_clip(described)
    vae = comfy.ours("model_loaders.bridge.vae").make_vae(described)
    comfy.run("CheckpointSave", model=model, clip=clip, vae=vae, filename_prefix="kept")
    name = comfy.saved("checkpoints", "kept")
    model_again, clip_again, vae_again = comfy.run("WeftLoadCheckpoint", checkpoint=name)
    ours, theirs = (one.model.diffusion_model.state_dict() for one in (model, model_again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key].float(), theirs[key].float()) for key in ours)
    texts = [comfy.run("CLIPTextEncode", clip=one, text="a panda")[0][0][0] for one in (clip, clip_again)]
    # The text encoder is saved in the precision in which ComfyUI holds it.
    torch.testing.assert_close(texts[1].float(), texts[0].float(), rtol=0, atol=1e-4 * float(texts[0].abs().max()))
    assert model_again.model.checkpoint.schedule == model.model.checkpoint.schedule
    video = torch.rand(1, 3, 2, 4, 4)
    assert torch.equal(vae_again.decode(video), vae.decode(video))


def test_other_samplers_and_levels(comfy, loaded):
    model, _ = loaded("base")
    sampler = comfy.run("KSamplerSelect", sampler_name="euler")[0]
    sigmas = comfy.run("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)[0]
    inputs = {"model": model, **TEXT, "width": 8, "height": 4, "frames": 2, "seed": 1}
    found = comfy.run("WeftShow1Keyframes", **inputs, sampler=sampler, sigmas=sigmas)[0]["samples"]
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=8, height=4, frames=2)[0]
    settings = {"seed": 1, "steps": 3, "cfg": 9.0, "sampler_name": "euler", "scheduler": "simple"}
    expected = comfy.run("KSampler", model=model, **TEXT, latent_image=latent, **settings)[0]["samples"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_bar_for_all_windows(comfy, loaded):
    from comfy.utils import set_progress_bar_global_hook

    model, _ = loaded("interpolation")
    said = []
    set_progress_bar_global_hook(lambda value, total, preview, **_: said.append((value, total)))
    try:
        keys = torch.zeros(1, 3, 3, 4, 4)
        comfy.run("WeftShow1Interpolate", model=model, **TEXT, keyframes={"samples": keys}, steps=2)
    finally:
        set_progress_bar_global_hook(None)
    # ComfyUI leaves out some that follow each other quickly.
    assert said[-1] == (4, 4) and said == sorted(set(said)) and {total for _, total in said} == {4}


def test_previews_are_the_frames(comfy, loaded, monkeypatch):
    import latent_preview
    from comfy.utils import set_progress_bar_global_hook

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    model, _ = loaded("base")
    seen = []
    set_progress_bar_global_hook(lambda value, total, preview, **_: seen.append(preview))
    try:
        comfy.run("WeftShow1Keyframes", model=model, **TEXT, width=8, height=8, frames=4, steps=2)
    finally:
        set_progress_bar_global_hook(None)
    assert [preview[1].size for preview in seen if preview][-1] == (16, 16), "four frames as a sheet"


INTERRUPTED = {
    "WeftShow1Keyframes": ("base", {"width": 8, "height": 4, "frames": 3, "steps": 4}),
    "WeftShow1SuperResolution": ("sr1", {"video": {"samples": torch.zeros(1, 3, 9, 2, 2)}, "steps": 2}),
}


@pytest.mark.parametrize("node", INTERRUPTED)
def test_interrupted_inside_the_network_and_queued_again(comfy, loaded, interrupting, node):
    """The layers of ComfyUI end the run; nothing of it is left in the cached MODEL."""
    stage, inputs = INTERRUPTED[node]
    model, after = interrupting(loaded(stage)[0])
    inputs = {"model": model, **TEXT, **inputs, "seed": 1}
    fresh = comfy.run(node, **inputs)[0]["samples"]
    assert after.calls >= 4
    with after(3):
        comfy.run(node, **inputs)
    assert torch.equal(comfy.run(node, **inputs)[0]["samples"], fresh)


def test_interrupted_between_windows_and_queued_again(comfy, loaded):
    """Nothing of the run that was broken off is left in the cached MODEL."""
    from comfy import model_management
    from comfy.utils import set_progress_bar_global_hook

    model, _ = loaded("interpolation")
    keys = {"samples": torch.rand(1, 3, 4, 4, 4, generator=torch.manual_seed(5)) * 2 - 1}
    inputs = {"model": model, **TEXT, "keyframes": keys, "steps": 2, "seed": 1}
    fresh = comfy.run("WeftShow1Interpolate", **inputs)[0]["samples"]
    values = []

    def stop(value, total, preview, **_):
        values.append(value)
        if value >= 3:
            model_management.interrupt_current_processing()
        model_management.throw_exception_if_processing_interrupted()

    set_progress_bar_global_hook(stop)
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            comfy.run("WeftShow1Interpolate", **inputs)
    finally:
        set_progress_bar_global_hook(None)
    assert max(values) < 6, "of six steps; ComfyUI says only some of those that follow each other quickly"
    assert torch.equal(comfy.run("WeftShow1Interpolate", **inputs)[0]["samples"], fresh)


def test_two_videos_at_once_are_those_of_two_runs(comfy, loaded):
    """Each is given its own keyframes; noise is drawn for both together."""
    model, _ = loaded("interpolation")
    keys = torch.rand(2, 3, 2, 4, 4, generator=torch.manual_seed(5)) * 2 - 1
    inputs = {"model": model, **TEXT, "steps": 3, "seed": 1}
    both = comfy.run("WeftShow1Interpolate", **inputs, keyframes={"samples": keys})[0]["samples"]
    one = comfy.run("WeftShow1Interpolate", **inputs, keyframes={"samples": keys[:1]})[0]["samples"]
    torch.testing.assert_close(both[:1], one, **TOLERANCE)
    assert both.shape == (2, 3, 5, 4, 4) and (both[0] - both[1]).abs().max() > 0.05


@pytest.mark.parametrize("words", [70, 78])
def test_text_behind_77_tokens_is_not_read(comfy, loaded, caplog, words):
    """As encoders of other models pad; where words are lost, the log says so."""
    model, _ = loaded("base")
    tokens = torch.randn(1, 128, 20, generator=torch.manual_seed(3))
    marked = {"attention_mask": (torch.arange(128) < words)[None].long()}
    inputs = {"model": model, "negative": TEXT["negative"], "width": 8, "height": 4, "frames": 2, "steps": 2}
    found, cut = (
        comfy.run("WeftShow1Keyframes", **inputs, positive=[[text, marks]])[0]["samples"]
        for text, marks in ((tokens, marked), (tokens[:, :77], {}))
    )
    assert torch.equal(found, cut)
    assert ("more than 77 tokens" in caplog.text) == (words > 77)


@pytest.mark.parametrize(
    ("state", "low"), [("LOW_VRAM", True), ("NO_VRAM", True), ("NORMAL_VRAM", False), ("DISABLED", False)]
)
def test_lowvram_and_novram_compute_in_small_parts(comfy, loaded, monkeypatch, state, low):
    """What ComfyUI makes of its switches on a GPU; the setting lasts as long as a call of the network."""
    from comfy import model_management

    chunk_size = comfy.ours("kernels.layers.chunking").chunk_size
    on_gpu, seen = torch.zeros(1, device="meta"), []
    model, _ = loaded("base")
    norm = model.model.diffusion_model.norm_out
    norm.register_forward_pre_hook(lambda *_: seen.append(chunk_size(1 << 40, 1, on_gpu)))
    monkeypatch.setattr(model_management, "vram_state", getattr(model_management.VRAMState, state))
    x = torch.zeros(1, 3, 2, 4, 4)
    assert model.model.apply_model(x, torch.ones(1), c_crossattn=TEXTS["yes"]).isfinite().all()
    assert seen == [(16 << 20 if low else 96 << 20) // 4] and chunk_size(1 << 40, 1, on_gpu) == (96 << 20) // 4


# Refusals


def test_a_file_in_the_socket_of_another_stage(comfy, loaded, toy):
    base, sr1 = loaded("base")[0], loaded("sr1")[0]
    small = {"samples": torch.zeros(1, 3, 3, 4, 4)}
    found = r"Found tiny_base.safetensors \(Show-1's keyframes\), expected a model for Show-1's "
    with pytest.raises(ValueError, match=found + "interpolation: load that one"):
        comfy.run("WeftShow1Interpolate", model=base, **TEXT, keyframes=small)
    with pytest.raises(ValueError, match=found + "super-resolution: load"):
        comfy.run("WeftShow1SuperResolution", model=base, **TEXT, video=small)
    with pytest.raises(ValueError, match=found + "super-resolution of single pictures: load"):
        comfy.run("WeftShow1SuperResolution", model=sr1, **TEXT, video=small, first_frame_model=base)
    with pytest.raises(
        ValueError, match=r"Found toy.safetensors \(no stage of Show-1 on pixels\), expected .* keyframes"
    ):
        comfy.run("WeftShow1Keyframes", model=toy.model, **TEXT)


def test_text_of_another_width(comfy, loaded, toy):
    model, _ = loaded("base")
    with pytest.raises(ValueError, match=r"text has width 32, this model was made for 20: .*tiny_base"):
        comfy.run("WeftShow1Keyframes", model=model, positive=toy.positive, negative=toy.negative)


def test_frames_that_a_stage_cannot_take(comfy, loaded):
    base, between, sr1 = (loaded(stage)[0] for stage in ("base", "interpolation", "sr1"))
    with pytest.raises(ValueError, match="width x height 63x40, this stage takes multiples of 2: choose 64x40"):
        comfy.run("WeftShow1Keyframes", model=base, **TEXT, width=63)
    odd = {"samples": torch.zeros(1, 3, 3, 4, 5)}
    with pytest.raises(ValueError, match="5x4, this stage takes multiples of 2: scale or crop the keyframes to 4x4"):
        comfy.run("WeftShow1Interpolate", model=between, **TEXT, keyframes=odd)
    with pytest.raises(ValueError, match="Found 1 keyframe, expected at least 2: connect as many pictures"):
        comfy.run("WeftShow1Interpolate", model=between, **TEXT, keyframes=torch.zeros(1, 4, 4, 3))
    latent = {"samples": torch.zeros(1, 4, 3, 4, 4)}
    settings = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    with pytest.raises(ValueError, match="latent has 4 channels, tiny_base.safetensors takes 3: it was made for"):
        comfy.run("KSampler", model=base, **TEXT, latent_image={"samples": latent["samples"] + 1}, **settings)
    with pytest.raises(ValueError, match=r"Found small video as a latent of shape \(1, 4, 3, 4, 4\), expected pixels"):
        comfy.run("WeftShow1SuperResolution", model=sr1, **TEXT, video=latent)
