"""HiGen and ModelScopeT2V as native models."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def loaded(tiny_networks):
    """Loads a tiny network from a file of its weights alone; gives MODEL and the network."""
    return tiny_networks


@pytest.mark.parametrize(("kind", "width"), [("higen", 20), ("modelscope", 24)])
@pytest.mark.parametrize("frames", [1, 3])
def test_one_step_is_the_network(comfy, loaded, kind, width, frames):
    """Velocity on a schedule without terminal signal for HiGen, noise for ModelScope; Stable Diffusion's latents."""
    from weft.model_loaders.higen import HIGEN_SCHEDULE, MODELSCOPE_SCHEDULE

    model, network = loaded(kind)
    x, text = torch.randn(2, 4, frames, 8, 8), torch.randn(2, 7, width)
    schedule = HIGEN_SCHEDULE if kind == "higen" else MODELSCOPE_SCHEDULE
    alpha = schedule.alphas_cumprod()[500].float()
    sigma = schedule.sigmas()[500].float()
    found = model.model.apply_model(x, sigma.expand(2), c_crossattn=text)
    noisy = x * alpha.sqrt()
    predicted = network(noisy, torch.full((2,), 500.0), text)
    expected = alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted if kind == "higen" else x - sigma * predicted
    # ComfyUI finds the timestep of a float32 sigma.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert model.get_model_object("latent_format").spec.scale == 0.18215


def test_a_picture_is_sampled_by_the_stock_sampler(comfy, loaded):
    model, _ = loaded("higen")
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=1)[0]
    text = [[torch.randn(1, 7, 20), {}]]
    settings = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
    found = comfy.run("KSampler", model=model, positive=text, negative=text, latent_image=latent, **settings)[0]
    assert found["samples"].shape == (1, 4, 1, 8, 8) and found["samples"].isfinite().all()
    wrong = [[torch.randn(1, 7, 24), {}]]
    with pytest.raises(ValueError, match="text has width 24, this model was made for 20"):
        comfy.run("KSampler", model=model, positive=wrong, negative=wrong, latent_image=latent, **settings)


LENGTHS = {"yes": 7, "no": 9}
TEXTS = {kind: torch.randn(1, n, 20, generator=torch.manual_seed(n)) for kind, n in LENGTHS.items()}
SEED = 11


def conditioning(kind):
    return [[TEXTS[kind], {}]]


def release(comfy, model, latent, guidance=12.0, steps=20):
    """Samples by Release Sampler as released, which adds no noise, with classifier-free guidance."""
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=model, kind="ddim", steps=steps)
    guider = comfy.run(
        "CFGGuider", model=model, positive=conditioning("yes"), negative=conditioning("no"), cfg=guidance
    )[0]
    noise = comfy.run("RandomNoise", noise_seed=SEED)[0]
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return comfy.run("SamplerCustomAdvanced", **inputs)[0]["samples"]


class Reference:
    """The released sampling loop in float64: v-prediction, guidance on v, DDIM on 1, 1 + k, ..., ending at abar[0]."""

    def __init__(self, network, guidance=12.0, steps=20):
        with torch.inference_mode(False):
            self.network = copy.deepcopy(network).double()
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        root = torch.cumprod(1 - beta, 0).sqrt()
        self.alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        self.guidance, self.stride = guidance, 1000 // steps

    def __call__(self, x, **cues):
        x = x.double()
        for now in reversed(range(1, 1000, self.stride)):
            a, then = self.alphas[now], self.alphas[max(now - self.stride, 0)]
            time = torch.full((len(x),), float(now), dtype=torch.float64)
            yes, no = (self.network(x, time, TEXTS[kind].double().expand(len(x), -1, -1), **cues) for kind in TEXTS)
            v = no + self.guidance * (yes - no)
            clean = a.sqrt() * x - (1 - a).sqrt() * v
            eps = (x - a.sqrt() * clean) / (1 - a).sqrt()
            x = then.sqrt() * clean + (1 - then).sqrt() * eps
        return x


def noise_of(shape):
    return torch.randn(shape, generator=torch.manual_seed(SEED))


def offset_of(shape):
    return torch.randn((*shape[:3], 1, 1), generator=torch.Generator().manual_seed(SEED + 2))


def test_both_stages_as_released(comfy, loaded):
    """Latents of Release Sampler against the loop of the release on the same noise, within 1e-3 of their spread.

    Guidance 12 multiplies the rounding of every step; what is found is about 1e-4.
    """
    model, network = loaded("higen")
    reference = Reference(network)
    spatial, latent = comfy.run("WeftHiGenSpatialReasoning", model=model, width=64, height=128)
    picture = release(comfy, spatial, latent)
    expected = reference(noise_of((1, 4, 1, 16, 8)))
    torch.testing.assert_close(picture.double() * 0.18215, expected, rtol=0, atol=1e-3 * float(expected.std()))

    content = comfy.run("WeftHiGenContent", motion="0: 300, 4: 450.7", appearance=0.7, frames=6)[0]
    temporal, latent = comfy.run("WeftHiGenTemporalReasoning", model=model, prior={"samples": picture}, content=content)
    assert latent["samples"].shape == (1, 4, 6, 16, 8)
    video = release(comfy, temporal, latent)
    places = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] - torch.linspace(0, 1, 32, dtype=torch.float64)
    expected = reference(
        noise_of((1, 4, 6, 16, 8)) + 0.1 * offset_of((1, 4, 6)),
        prior=picture[:, :, 0].double() * 0.18215,
        motion=torch.tensor([[300, 337, 375, 413, 450]]),
        appearance=(1 - 0.7 * places.abs())[None],
    )
    torch.testing.assert_close(video.double() * 0.18215, expected, rtol=0, atol=1e-3 * float(expected.std()))


def sampled(comfy, model, latent, **changed):
    settings = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
    inputs = {"positive": conditioning("yes"), "negative": conditioning("no"), "latent_image": latent}
    return comfy.run("KSampler", model=model, **{**settings, **inputs, **changed})[0]["samples"]


def content_of(comfy, frames=6, motion="500", appearance=1.0):
    return comfy.run("WeftHiGenContent", motion=motion, appearance=appearance, frames=frames)[0]


def test_cues_steer_and_are_taken_off_again(comfy, loaded):
    """Prior, motion and appearance each change the video; the model they were put into stays as it was."""
    model, _ = loaded("higen")
    pictures = [{"samples": torch.randn(1, 4, 8, 8, generator=torch.manual_seed(seed))} for seed in (0, 1)]
    changes = [{}, {"prior": pictures[1]}, {"content": content_of(comfy, motion="0: 500, 4: 100")}]
    changes += [{"content": content_of(comfy, appearance=0.0)}]
    videos = []
    for change in changes:
        inputs = {"model": model, "prior": pictures[0], "content": content_of(comfy), **change}
        patched, latent = comfy.run("WeftHiGenTemporalReasoning", **inputs)
        videos.append(sampled(comfy, patched, latent))
    for other in videos[1:]:
        assert (other - videos[0]).abs().max() > 1e-3
    plain = comfy.run("WeftHiGenSpatialReasoning", model=patched, width=64, height=64)
    assert torch.equal(sampled(comfy, *plain), sampled(comfy, model, plain[1]))


def test_several_pictures_are_several_videos(comfy, loaded):
    model, _ = loaded("higen")
    pictures = torch.randn(2, 4, 8, 8)
    content = content_of(comfy)
    together, latent = comfy.run(
        "WeftHiGenTemporalReasoning", model=model, prior={"samples": pictures}, content=content
    )
    both = sampled(comfy, together, latent)
    for index in range(2):
        alone, _ = comfy.run(
            "WeftHiGenTemporalReasoning", model=model, prior={"samples": pictures[index : index + 1]}, content=content
        )
        # One prior serves all videos of a batch; each video is its own.
        torch.testing.assert_close(sampled(comfy, alone, latent)[index], both[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("causal_window_fix", [True, False])
def test_cues_follow_context_windows(comfy, loaded, causal_window_fix):
    """One window over everything changes nothing; windows see their own motion and appearance."""
    model, network = loaded("higen")
    prior = {"samples": torch.randn(1, 4, 8, 8)}
    patched, latent = comfy.run(
        "WeftHiGenTemporalReasoning", model=model, prior=prior, content=content_of(comfy, 8, "0: 0, 7: 700")
    )

    def windowed(length):
        options = {"context_length": length, "context_overlap": 2, "context_schedule": "standard_static", "dim": 2}
        options |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "freenoise": False}
        if "causal_window_fix" in comfy.mappings["ContextWindowsManual"].INPUT_TYPES()["required"]:
            options["causal_window_fix"] = causal_window_fix
        return sampled(comfy, comfy.run("ContextWindowsManual", model=patched, **options)[0], latent)

    seen = []
    forward = type(patched.model.diffusion_model).forward

    def note(self, x, timesteps, *args, **cues):
        seen.append((x.shape[2], cues["motion"][0].tolist(), cues["appearance"][0].argmax(1).tolist()))
        return forward(self, x, timesteps, *args, **cues)

    torch.testing.assert_close(windowed(8), sampled(comfy, patched, latent), rtol=0, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(patched.model.diffusion_model), "forward", note)
        windowed(4)
    assert {frames for frames, _, _ in seen} <= {4, 5}
    for frames, motion, rows in seen:
        assert len(motion) == frames - 1 and len(rows) == frames
        steps = [later - earlier for earlier, later in zip(motion, motion[1:], strict=False)]
        assert steps == [100] * len(steps) and rows == sorted(rows)
    assert {motion[-1] for _, motion, _ in seen} >= {200, 600}


def test_skipped_frames_add_their_motion(comfy):
    """Windows with a stride, an anchor in front, and a loop that begins anew."""
    cue = comfy.ours("model_loaders.bridge.cues").StepCue(torch.tensor([[1, 2, 3, 4, 5]]))
    assert cue.at([0, 2, 4]).cond.tolist() == [[3, 7]]
    assert cue.at([0, 3, 4]).cond.tolist() == [[6, 4]]
    assert cue.at([4, 5, 0, 1]).cond.tolist() == [[5, 5, 1]]
    with pytest.raises(ValueError, match="has one frame: give it at least two"):
        cue.at([2])


def test_a_video_needs_its_picture(comfy, loaded):
    model, _ = loaded("higen")
    for plain in (model, comfy.run("WeftHiGenSpatialReasoning", model=model, width=64, height=64)[0]):
        with pytest.raises(ValueError, match="makes videos around a picture, and was given none: sample the MODEL of"):
            sampled(comfy, plain, {"samples": torch.zeros(1, 4, 6, 8, 8)})


def test_hooks_reach_the_resampler(comfy, loaded):
    """A LoRA on one prompt changes weights while sampling, after texts would have been resampled."""
    model, _ = loaded("higen")
    plain, latent = comfy.run("WeftHiGenSpatialReasoning", model=model, width=64, height=64)
    lora = {f"diffusion_model.resampler.project_in.lora_{side}.weight": torch.randn(shape) for side, shape in (
        ("up", (128, 4)), ("down", (4, 20)))}  # fmt: skip
    folder = comfy.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(lora, folder / "resampler.safetensors")
    hooks = comfy.run("CreateHookLora", lora_name="resampler.safetensors", strength_model=1.0, strength_clip=0.0)[0]
    hooked = [[TEXTS["yes"], {"hooks": hooks}]]
    assert (sampled(comfy, plain, latent, positive=hooked) - sampled(comfy, plain, latent)).abs().max() > 0.1


def test_a_control_net_is_said_to_have_no_effect(comfy, loaded, caplog):
    model, network = loaded("higen")
    x, text = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 7, 20)
    for _ in range(2):
        model.model.apply_model(x, torch.tensor([1.0]), c_crossattn=text, control={"middle": []})
    assert caplog.text.count("HiGenUNet takes no ControlNet: it has no effect") == 1


def test_text_is_resampled_once_and_one_frame_runs_no_temporal_layer(comfy, loaded):
    from weft.kernels.layers.temporal import TemporalAttention, TemporalConvolution

    model, _ = loaded("higen")
    kinds = [comfy.ours("kernels.networks.higen").TextResampler]
    kinds += [
        getattr(comfy.ours("kernels.layers.temporal"), kind.__name__)
        for kind in (TemporalAttention, TemporalConvolution)
    ]
    calls = dict.fromkeys(kinds, 0)

    def counted(module, *_):
        calls[type(module)] += 1

    hooks = [
        module.register_forward_hook(counted)
        for module in model.model.diffusion_model.modules()
        if type(module) in kinds
    ]
    sampled(comfy, *comfy.run("WeftHiGenSpatialReasoning", model=model, width=64, height=64), steps=4)
    for hook in hooks:
        hook.remove()
    assert hooks and list(calls.values()) == [2, 0, 0]  # a positive and a negative text


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ((1, 4, 3, 8, 8), "spatial prior has 3 frames, expected one"),
        ((1, 16, 8, 8), r"spatial prior has shape \(1, 16, 8, 8\), expected \(videos, 4"),
        ((4, 8, 8), r"spatial prior has shape \(4, 8, 8\)"),
        ((1, 4, 7, 8), "the picture's height is 56, HiGen takes multiples of 16: choose 48 or 64; scale or crop it"),
    ],
)
def test_a_prior_that_is_no_picture_is_refused(comfy, loaded, prior, message):
    model, _ = loaded("higen")
    with pytest.raises(ValueError, match=message):
        comfy.run(
            "WeftHiGenTemporalReasoning", model=model, prior={"samples": torch.zeros(prior)}, content=content_of(comfy)
        )


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ((1, 4, 5, 8, 8), "latent has 5 frames, the content was made for 6: connect the LATENT of HiGen Temporal"),
        ((1, 4, 6, 8, 16), "latent has height x width 8x16, the spatial prior 8x8"),
        ((3, 4, 6, 8, 8), "2 spatial priors for 3 videos"),
    ],
)
def test_a_latent_that_does_not_belong_is_refused_before_the_first_step(comfy, loaded, latent, message):
    model, _ = loaded("higen")
    prior = {"samples": torch.randn(2, 4, 8, 8)}
    patched, _ = comfy.run("WeftHiGenTemporalReasoning", model=model, prior=prior, content=content_of(comfy))
    with pytest.raises(ValueError, match=message):
        sampled(comfy, patched, {"samples": torch.zeros(latent)})


def test_other_models_and_sizes_are_refused(comfy, loaded, toy):
    model, _ = loaded("higen")
    with pytest.raises(ValueError, match="Found toy.safetensors, expected a HiGen model"):
        comfy.run("WeftHiGenSpatialReasoning", model=toy.model)
    with pytest.raises(ValueError, match="width is 72, HiGen takes multiples of 16: choose 64 or 80"):
        comfy.run("WeftHiGenSpatialReasoning", model=model, width=72, height=64)
    with pytest.raises(ValueError, match="ends at pure noise, which 'ancestral' cannot start from: choose 'ddim'"):
        comfy.run("WeftReleaseSampler", model=model, kind="ancestral")


@pytest.fixture
def image_encoder(comfy):
    """ComfyUI's CLIP image encoder, tiny, with drawn weights."""
    from comfy.clip_vision import ClipVisionModel

    torch.manual_seed(3)
    sizes = {
        "model_type": "clip_vision_model",
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_size": 16,
        "intermediate_size": 32,
    }
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 8}
    with torch.inference_mode(False):
        encoder = ClipVisionModel(sizes | layers)
        encoder.load_sd({name: 0.3 * torch.randn(tensor.shape) for name, tensor in encoder.get_sd().items()})
    return encoder


@pytest.fixture
def clip_of_frames():
    """A bright square that jumps once, in the middle of eight frames."""
    frames = torch.zeros(8, 64, 64, 3)
    frames[:4, 8:24, 8:24] = 1.0
    frames[4:, 40:56, 40:56] = 1.0
    return frames


def test_content_of_a_clip(comfy, loaded, image_vae, image_encoder, clip_of_frames):
    """Motion is where the clip jumps, frames before and after are alike; the plot shows it."""
    model, _ = loaded("higen")
    inputs = {"images": clip_of_frames, "vae": image_vae, "clip_vision": image_encoder, "model": model, "frames": 0}
    content, plot = comfy.run("WeftHiGenContentFromVideo", **inputs, similarity="cosine")
    assert content.motion[3] > 0 and content.motion[[0, 1, 2, 4, 5, 6]].tolist() == [0] * 6
    latents = torch.cat([image_vae.encode(frame[None]) for frame in clip_of_frames[3:5]])
    distance = float((latents[1] - latents[0]).norm()) * 0.18215 * (7168 / latents[0].numel()) ** 0.5
    assert float(content.motion[3]) == int(10 * distance)
    features = torch.cat([image_encoder.encode_image(frame[None]).image_embeds for frame in clip_of_frames[3:5]])
    cosine = torch.nn.functional.cosine_similarity(*features.double(), dim=0)
    assert float(content.appearance[0, 0]) == pytest.approx(1, abs=1e-6)
    assert float(content.appearance[0, -1]) == pytest.approx(float(cosine), abs=1e-5)
    released, _ = comfy.run("WeftHiGenContentFromVideo", **inputs, similarity="released")
    torch.testing.assert_close(released.appearance, 5 * content.appearance - 4, rtol=0, atol=1e-5)
    assert plot.shape[0] == 1 and plot.shape[3] == 3 and 0 <= plot.min() and plot.max() <= 1
    # Fewer frames than the clip has: measured between those that are taken, so that no jump is lost.
    shorter, _ = comfy.run("WeftHiGenContentFromVideo", **{**inputs, "frames": 4}, similarity="cosine")
    assert shorter.motion.tolist() == [0, float(content.motion[3]), 0]
    longer, _ = comfy.run("WeftHiGenContentFromVideo", **{**inputs, "frames": 12}, similarity="cosine")
    assert longer.frames == 12
    patched, latent = comfy.run(
        "WeftHiGenTemporalReasoning", model=model, prior={"samples": torch.randn(1, 4, 8, 8)}, content=longer
    )
    assert sampled(comfy, patched, latent).shape == (1, 4, 12, 8, 8)


def test_content_by_colours_needs_no_image_encoder(comfy, loaded, image_vae):
    """A square that doubles its brightness in even steps: similarity falls in a line to 0."""
    model, _ = loaded("higen")
    frames = torch.full((9, 64, 64, 3), 0.1)
    frames[:, 24:40, 24:40, 0] = 0.45 * 2 ** torch.linspace(0, 1, 9)[:, None, None]
    content, _ = comfy.run(
        "WeftHiGenContentFromVideo", images=frames, vae=image_vae, model=model, similarity="colours", frames=0
    )
    # The grey below the colour is no part of it: 0.35 becomes 0.8, a little more than the double.
    torch.testing.assert_close(content.appearance[0, [0, 16]], torch.tensor([1.0, 0.35]), rtol=0, atol=0.1)
    assert float(content.appearance[0, -1]) == 0
    assert content.frames == 9 and len(content.motion) == 8


def test_what_cannot_be_measured_is_refused(comfy, loaded, image_vae, image_encoder, clip_of_frames):
    model, _ = loaded("higen")
    inputs = {"images": clip_of_frames, "vae": image_vae, "clip_vision": image_encoder, "model": model}
    pixel_space = comfy.run("VAELoader", vae_name="pixel_space")[0]
    for changed, message in (
        ({"images": clip_of_frames[:1]}, "clip has 1 frame: motion needs at least 2"),
        ({"vae": pixel_space}, r"expected \(8, 4, height, width\): use the VAE that belongs to the model"),
        ({"clip_vision": image_vae}, "is no image encoder"),
        ({"clip_vision": None}, "No image encoder is connected: use Load CLIP Vision, or similarity 'colours'"),
    ):
        with pytest.raises(ValueError, match=message):
            comfy.run("WeftHiGenContentFromVideo", **{**inputs, **changed})


@pytest.fixture
def pipeline(comfy):
    """A folder in diffusers' layout: a small denoiser, Stable Diffusion's VAE and the text encoder of version 2."""
    from diffusers import AutoencoderKL, UNet3DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = comfy.base / "models" / "diffusers" / "zeroscope"
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    blocks |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    torch.manual_seed(0)
    with torch.inference_mode(False):
        UNet3DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=1024,
            attention_head_dim=8,
        ).save_pretrained(folder / "unet")
        vae = AutoencoderKL(**blocks).eval()
        vae.half().save_pretrained(folder / "vae")
        text = CLIPTextModel(CLIPTextConfig(**sizes, hidden_act="gelu")).eval()
        text.half().save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text("{}")
    yield folder, vae.float(), text.float()
    shutil.rmtree(folder)


def test_a_whole_pipeline_in_the_layout_of_diffusers(comfy, pipeline):
    """Text and pictures are those of transformers and diffusers, whose weights these are (rounded to half)."""
    folder, vae, text = pipeline
    checkpoint = next(item for item in comfy.mappings["WeftLoadCheckpoint"].define_schema().inputs)
    assert folder.name in checkpoint.options
    model, clip, found_vae = comfy.run("WeftLoadCheckpoint", checkpoint=folder.name)
    encoded = comfy.run("CLIPTextEncode", clip=clip, text="a dog")[0]
    # Start, "a", "dog", end, padded with the token 0 to 77 as Stable Diffusion 2 does.
    tokens = torch.tensor([[49406, 320, 1929, 49407] + [0] * 73])
    expected = text(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(encoded[0][0], expected, rtol=0, atol=2e-3)
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=3)[0]
    video = sampled(comfy, model, latent, positive=encoded, negative=encoded)
    assert video.shape == (1, 4, 3, 8, 8)
    frames = comfy.run("VAEDecode", samples={"samples": video}, vae=found_vae)[0]
    decoded = vae.decode(video[0].transpose(0, 1).float()).sample.movedim(1, -1).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(frames, decoded, rtol=0, atol=2e-3)
    # Saved as one file and loaded again, it knows the same words.
    comfy.run("CheckpointSave", model=model, clip=clip, vae=found_vae, filename_prefix="whole")
    _, again, _ = comfy.run("WeftLoadCheckpoint", checkpoint=comfy.saved("checkpoints", "whole"))
    torch.testing.assert_close(comfy.run("CLIPTextEncode", clip=again, text="a dog")[0][0][0], encoded[0][0])
    (comfy.base / "models" / "checkpoints" / "whole.safetensors").unlink()
