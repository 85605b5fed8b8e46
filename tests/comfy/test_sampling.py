"""Stock samplers, guiders and patches on the pack's MODEL."""

import pytest
import torch


def network_calls(model):
    """A clone of the model, and a list that gets the latent shape of every call of its network."""
    from comfy.patcher_extension import WrappersMP

    shapes, counted = [], model.clone()

    def count(executor, x, *args, **kwargs):
        shapes.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    counted.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return counted, shapes


SAMPLERS = ["euler", "dpmpp_2m", "ddim", "uni_pc", "lcm", "heun", "euler_ancestral", "res_multistep"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(sample, sampler):
    latent = sample(sampler_name=sampler, steps=4)
    assert latent.shape == (1, 4, 4, 8, 8) and latent.isfinite().all()
    assert latent.std() > 0.1
    assert torch.equal(latent, sample(sampler_name=sampler, steps=4)), "the same seed gives the same video"


@pytest.mark.parametrize("scheduler", ["simple", "karras", "ddim_uniform", "sgm_uniform", "beta", "exponential"])
def test_schedulers(sample, scheduler):
    latent = sample(scheduler=scheduler)
    assert latent.isfinite().all() and latent.std() > 0.1


def test_seed_and_text_matter(sample, toy, comfy):
    base = sample()
    other_text = comfy.run("CLIPTextEncode", clip=toy.clip, text="a blue square")[0]
    assert (base - sample(seed=6)).abs().mean() > 0.1
    assert (base - sample(positive=other_text)).abs().mean() > 1e-3


def test_two_videos_at_once_are_those_of_two_runs(sample, toy, comfy):
    """Noise of a batch is drawn video by video, and no video sees another."""
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16, batch_size=2)[0]
    both = sample(latent_image=latent)
    single = {"samples": latent["samples"][:1]}
    rounding = {"rtol": 1e-4, "atol": 1e-4 * float(both.std())}  # the order of sums differs with the batch size
    assert torch.allclose(both[:1], sample(latent_image=single), **rounding)
    second = {**single, "batch_index": [1]}
    assert torch.allclose(both[1:], sample(latent_image=second), **rounding)


def test_guidance_and_one_branch_at_cfg_1(sample, toy):
    model, shapes = network_calls(toy.model)
    sample(model, cfg=1.0, steps=2)
    assert shapes == [(1, 4, 4, 8, 8)] * 2
    shapes.clear()
    sample(model, cfg=4.0, steps=2)
    assert sum(shape[0] for shape in shapes) == 4


def test_timestep_ranges_choose_the_prompt(sample, toy, comfy):
    blue = comfy.run("CLIPTextEncode", clip=toy.clip, text="a blue square")[0]

    def ranged(conditioning, start, end):
        return comfy.run("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)[0]

    red_only, blue_only = sample(), sample(positive=blue)
    assert torch.equal(sample(positive=ranged(blue, 0.0, 1.0)), blue_only)
    mixed = sample(positive=ranged(blue, 0.0, 0.5) + ranged(toy.positive, 0.5, 1.0))
    assert (mixed - red_only).abs().mean() > 1e-3 and (mixed - blue_only).abs().mean() > 1e-3


def test_masked_frames_are_kept(sample, comfy):
    given = torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(1))
    mask = torch.zeros(4, 64, 64)
    mask[2:] = 1.0  # one mask per latent frame; 1 is made anew
    latent = comfy.run("SetLatentNoiseMask", samples={"samples": given}, mask=mask)[0]
    out = sample(latent_image=latent, steps=4)
    # Through the latent's scale and back, in float32.
    assert torch.allclose(out[:, :, :2], given[:, :, :2], atol=1e-4)
    assert (out[:, :, 2:] - given[:, :, 2:]).abs().mean() > 0.1


def test_easycache_skips_network_calls(sample, toy, comfy):
    cached = comfy.run("EasyCache", model=toy.model, reuse_threshold=0.5)[0]
    model, shapes = network_calls(cached)  # after EasyCache, so nearer to the network
    approximate = sample(model, steps=20)
    assert 4 <= len(shapes) < 16, "20 steps"
    assert approximate.isfinite().all() and not torch.equal(approximate, sample(steps=20))


def windows(comfy, model, **options):
    """Context windows along time; the fix for causal models, which newer ComfyUIs have, would lengthen them by one."""
    known = comfy.mappings["ContextWindowsManual"].INPUT_TYPES()["required"]
    options |= {"context_schedule": "standard_static", "fuse_method": "pyramid"}
    options |= {name: False for name in ("causal_window_fix",) if name in known}
    return comfy.run("ContextWindowsManual", model=model, dim=2, **options)[0]


def test_context_windows_cut_long_videos(sample, toy, comfy):
    model, shapes = network_calls(toy.model)
    windowed = windows(comfy, model, context_length=4, context_overlap=2)
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=40)[0]
    out = sample(windowed, latent_image=latent, steps=2)
    assert out.shape == (1, 4, 10, 8, 8) and out.isfinite().all()
    assert {shape[2] for shape in shapes} == {4}
    assert len(shapes) == 2 * 4, "10 latents in windows of 4 with steps of 2: four windows, twice"


def test_a_window_as_long_as_the_video_changes_nothing(sample, toy, comfy):
    assert torch.equal(sample(), sample(windows(comfy, toy.model, context_length=4, context_overlap=0)))


def test_rescaled_guidance_and_model_sampling_patches_run(sample, toy, comfy):
    patched = comfy.run("ModelSamplingDiscrete", model=toy.model, sampling="v_prediction", zsnr=True)[0]
    assert sample(patched).isfinite().all()
    assert not torch.equal(sample(comfy.run("APG", model=toy.model)[0], cfg=6.0), sample(cfg=6.0))


def test_more_text_than_one_chunk(sample, toy, comfy):
    """ComfyUI makes several chunks of a long prompt; the encoder has 16 tokens for each."""
    long = comfy.run("CLIPTextEncode", clip=toy.clip, text="a red circle " * 9)[0]
    assert long[0][0].shape[1:] == (32, 32)
    assert sample(positive=long).isfinite().all()


def test_prompts_in_regions(sample, toy, comfy):
    """A mask, an area of the picture, a part of the time: stock nodes, on latents with a time axis."""
    blue = comfy.run("CLIPTextEncode", clip=toy.clip, text="a blue square")[0]
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1.0
    options = {"strength": 1.0, "set_cond_area": "default"}
    masked = comfy.run("ConditioningSetMask", conditioning=blue, mask=left, **options)[0]
    area = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
    placed = comfy.run("ConditioningSetAreaPercentageVideo", conditioning=blue, temporal=0.5, z=0.0, **area)[0]
    plain = sample(steps=1)
    for regional in (masked, placed):
        changed = sample(
            positive=comfy.run("ConditioningCombine", conditioning_1=toy.positive, conditioning_2=regional)[0], steps=1
        )
        outside, inside = ((changed - plain)[..., half].abs().max() for half in (slice(4, 8), slice(0, 4)))
        assert inside > 1e-3 and outside < 1e-3 * inside
    zeroed = comfy.run("ConditioningZeroOut", conditioning=toy.positive)[0]
    assert sample(positive=zeroed).isfinite().all()


def test_latents_are_cut_and_joined_in_time(sample, comfy):
    whole = {"samples": sample()}
    first = comfy.run("LatentCut", samples=whole, dim="t", index=0, amount=1)[0]
    rest = comfy.run("LatentCut", samples=whole, dim="t", index=1, amount=3)[0]
    assert first["samples"].shape == (1, 4, 1, 8, 8) and rest["samples"].shape == (1, 4, 3, 8, 8)
    joined = comfy.run("LatentConcat", samples1=first, samples2=rest, dim="t")[0]
    assert torch.equal(joined["samples"], whole["samples"])


def test_a_larger_video_from_a_small_one(sample, comfy):
    larger = comfy.run("LatentUpscaleBy", samples={"samples": sample()}, upscale_method="bislerp", scale_by=1.5)[0]
    assert larger["samples"].shape == (1, 4, 4, 12, 12)
    assert sample(latent_image=larger, denoise=0.5).isfinite().all()


# Refusals


def test_an_image_latent_is_refused(sample, comfy):
    image = comfy.run("EmptyLatentImage", width=64, height=64, batch_size=4)[0]
    with pytest.raises(ValueError, match="found 4 latents of one frame: use Empty Video Latent"):
        sample(latent_image=image)


def test_text_of_another_width_is_refused(sample, comfy):
    wide = comfy.run("WeftLoadCheckpoint", checkpoint="toy_wide.safetensors")[1]
    text = comfy.run("CLIPTextEncode", clip=wide, text="a")[0]
    with pytest.raises(ValueError, match=r"text has width 48, this model was made for 32: .*toy\.safetensors"):
        sample(positive=text)


def test_seeds_up_to_the_largest(sample, toy, comfy):
    """The released sampler draws its own noise with a seed beside that of the start."""
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=toy.model, steps=2, eta=1.0)
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16)[0]
    guider = comfy.run("CFGGuider", model=toy.model, positive=toy.positive, negative=toy.negative, cfg=1.0)[0]
    noise = comfy.run("RandomNoise", noise_seed=2**64 - 1)[0]
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    assert comfy.run("SamplerCustomAdvanced", **inputs)[0]["samples"].isfinite().all()


def test_the_released_walk_cut_in_two(toy, comfy):
    """What stands between is on the scale that the next stage expects, whichever sampler comes then."""
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=toy.model, steps=10, eta=0.0)
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16)[0]
    guider = comfy.run("CFGGuider", model=toy.model, positive=toy.positive, negative=toy.negative, cfg=1.0)[0]

    def walk(noise, part, start):
        inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": part, "latent_image": start}
        return comfy.run("SamplerCustomAdvanced", **inputs)[0]

    noise, none = comfy.run("RandomNoise", noise_seed=1)[0], comfy.run("DisableNoise")[0]
    whole = walk(noise, sigmas, latent)["samples"]
    first, second = comfy.run("SplitSigmas", sigmas=sigmas, step=5)
    halves = walk(none, second, walk(noise, first, latent))["samples"]
    # Through the latent format and back once more, in float32.
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-4 * float(whole.std()))


def test_a_model_without_text_runs_the_same_graph(comfy, sample):
    model, clip, _ = comfy.run("WeftLoadCheckpoint", checkpoint="toy_uncond.safetensors")
    texts = [comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", "")]
    videos = [sample(model, positive=text, negative=text, cfg=1.0) for text in texts]
    assert videos[0].std() > 0.1 and torch.equal(*videos)


def test_clip_skip(comfy, toy):
    def skipped(layer):
        clip = comfy.run("CLIPSetLastLayer", clip=toy.clip, stop_at_clip_layer=layer)[0]
        return comfy.run("CLIPTextEncode", clip=clip, text="a red circle")[0][0][0]

    assert torch.allclose(skipped(-1), toy.positive[0][0], atol=1e-6)
    assert skipped(-2).isfinite().all()


def test_a_single_latent_is_refused_where_it_is_made(comfy, toy):
    with pytest.raises(ValueError, match="frames is 4, this model makes videos of at least 8: choose 8 or more"):
        comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=4)


# The mask-conditional network


def test_given_latents_reach_the_mask_conditional_network(comfy):
    import node_helpers

    model = comfy.run("WeftLoadCheckpoint", checkpoint="toy_masked.safetensors")[0]
    seen = []

    def look(executor, x, *args, **kwargs):
        seen.append((x[:, 4:].clone(), kwargs.get("noise_level")))
        return executor(x, *args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=16)[0]
    nothing = [[torch.zeros(1, 1, 8), {}]]
    mask = torch.zeros(1, 1, 4, 8, 8)
    mask[:, :, 0] = 1.0
    given = node_helpers.conditioning_set_values(nothing, {"concat_mask": mask, "noise_level": 3})
    settings = {"seed": 1, "steps": 1, "sampler_name": "euler", "scheduler": "normal"}
    for conditioning, expected, level in ((nothing, torch.zeros_like(mask), None), (given, mask, 3)):
        inputs = {"model": model, "positive": conditioning, "negative": nothing, "cfg": 1.0, "latent_image": latent}
        out = comfy.run("KSampler", **inputs, **settings)[0]["samples"]
        assert out.isfinite().all()
        channel, found = seen.pop()
        assert torch.equal(channel, expected)
        assert found is None if level is None else int(found) == level
    still = node_helpers.conditioning_set_values(nothing, {"concat_mask": mask[:, :, :1]})
    comfy.run("KSampler", **{**inputs, "positive": still}, **settings)
    assert seen.pop()[0].min() == 1.0  # one frame stands for all
    for level in (-1, 8):
        wrong = node_helpers.conditioning_set_values(nothing, {"noise_level": level})
        with pytest.raises(ValueError, match=r"noise level of given latents is \[-?\d\], toy_masked.* takes 0 to 7"):
            comfy.run("KSampler", **{**inputs, "positive": wrong}, **settings)
    wrong = node_helpers.conditioning_set_values(nothing, {"concat_mask": mask[:, :, :3]})
    with pytest.raises(ValueError, match="given latents has 3 frames, the latent has 4"):
        comfy.run("KSampler", **{**inputs, "positive": wrong}, **settings)
