"""Mitigating gradient and guidance schedule through real samplers, on models of this pack and of the core."""

import logging

import pytest
import torch


@pytest.fixture
def run(comfy):
    """Sample by the stock KSampler; what it gives is on the scale of the model."""

    def sample(model, shape, **changed):
        text = torch.randn(2, 1, 8, 12, generator=torch.manual_seed(1))
        inputs = {
            "positive": [[text[0], {}]],
            "negative": [[text[1], {}]],
            "latent_image": {"samples": torch.zeros(shape)},
        }
        inputs |= {"seed": 3, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        samples = comfy.run("KSampler", model=model, **{**inputs, **changed})[0]["samples"]
        return model.model.process_latent_in(samples)

    return sample


def frames_first(latents):
    """(B, F, ...), all frames of a batch of images being one video."""
    return latents.transpose(1, 2) if latents.ndim == 5 else latents[None]


@pytest.mark.parametrize("build", ["wan", "cogvideo", "images"])
@pytest.mark.parametrize("form", ["algorithm", "exact"])
def test_one_step_is_the_guided_prediction(comfy, core_models, run, build, form):
    """Euler from the highest noise level to none returns the prediction, so that the node's effect is all there is."""
    from weft.kernels.sampling.mitigating_gradient import mitigated

    model, shape = core_models[build]()
    plain = run(model, shape)
    sampling = model.get_model_object("model_sampling")
    sigma = float(sampling.sigma_max)
    ratio = sigma / (1 - sigma) if build == "wan" and sigma < 1 else float("inf") if build == "wan" else sigma
    expected = mitigated(frames_first(plain), 5.0, ratio, form=form)
    patched = comfy.run("WeftMitigatingGradient", model=model, alpha=5.0, form=form)[0]
    found = frames_first(run(patched, shape))
    # Sums in float32 of values of this size; the step adds and subtracts noise of the size of sigma.
    rounding = 1e-4 * float(expected.abs().max()) + 1e-6 * sigma
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=rounding)
    assert (found - frames_first(plain)).abs().max() > 1e-2 * plain.std()
    torch.testing.assert_close(run(model, shape), plain, rtol=0, atol=0)


def test_lvdm_flickers_less(comfy, sample, toy):
    def flicker(latent):
        return latent.diff(dim=2).square().mean()

    plain = sample(steps=6)
    guided = [
        sample(comfy.run("WeftMitigatingGradient", model=toy.model, alpha=alpha, strength="per element")[0], steps=6)
        for alpha in (10.0, 40.0)
    ]
    assert flicker(guided[1]) < flicker(guided[0]) < flicker(plain)


def test_videos_in_a_batch_do_not_see_each_other(comfy, core_models, run):
    model, shape = core_models["images"]()
    alone = comfy.run("WeftMitigatingGradient", model=model, alpha=40.0)[0]
    both = comfy.run("WeftMitigatingGradient", model=model, alpha=40.0, frames=6)[0]
    single = run(alone, shape, steps=3)
    double = run(both, (12, *shape[1:]), steps=3)
    torch.testing.assert_close(double[:6], single, rtol=1e-4, atol=1e-3)
    model, shape = core_models["wan"]()
    patched = comfy.run("WeftMitigatingGradient", model=model, alpha=40.0)[0]
    torch.testing.assert_close(
        run(patched, (2, *shape[1:]), steps=3)[:1], run(patched, shape, steps=3), rtol=1e-4, atol=1e-3
    )


def test_context_windows_are_guided_as_a_whole(comfy, core_models, run):
    from weft.kernels.sampling.mitigating_gradient import mitigated

    model, _ = core_models["wan"]()
    shape = (1, 16, 9, 8, 8)
    windows = {"context_length": 5, "context_overlap": 2, "context_schedule": "standard_static", "dim": 2}
    windowed = comfy.run("ContextWindowsManual", model=model, **windows)[0]
    plain = run(windowed, shape)
    found = run(comfy.run("WeftMitigatingGradient", model=windowed, alpha=5.0)[0], shape)
    expected = mitigated(plain.transpose(1, 2), 5.0, float("inf")).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_it_acts_behind_other_post_cfg_functions(comfy, core_models, run):
    """Whatever is connected after it."""
    model, shape = core_models["wan"]()

    def doubled(model):
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(lambda arguments: 2 * arguments["denoised"])
        return patched

    before = comfy.run("WeftMitigatingGradient", model=doubled(model), alpha=5.0)[0]
    after = doubled(comfy.run("WeftMitigatingGradient", model=model, alpha=5.0)[0])
    torch.testing.assert_close(run(before, shape), run(after, shape), rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "said"), [((1, 16, 1, 8, 8), "a single frame"), ((1, 4, 8, 8), "a single frame")])
def test_what_has_no_frames_passes_with_a_line(comfy, core_models, run, caplog, shape, said):
    model, _ = core_models["wan"]() if len(shape) == 5 else core_models["images"]()
    patched = comfy.run("WeftMitigatingGradient", model=model, alpha=40.0)[0]
    with caplog.at_level(logging.WARNING):
        found = run(patched, shape, steps=2)
    assert torch.equal(found, run(model, shape, steps=2))
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_packed_latents_pass_with_a_line(comfy, core_models, caplog):
    guidance = comfy.ours("model_loaders.bridge.guidance").MitigatingGradient(40.0, "algorithm", False, 0, 99.0, 0.0)
    model, _ = core_models["wan"]()
    packed = torch.randn(1, 1, 77)
    with caplog.at_level(logging.WARNING):
        assert guidance({"denoised": packed, "sigma": torch.tensor([0.5]), "model": model.model}) is packed
    assert "none of frames" in caplog.text


def test_range_of_steps(comfy, core_models, run):
    model, shape = core_models["wan"]()
    plain = run(model, shape, steps=4)
    whole, early, none = (
        run(comfy.run("WeftMitigatingGradient", model=model, start_percent=start, end_percent=end)[0], shape, steps=4)
        for start, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 0.5))
    )
    assert torch.equal(none, plain)
    assert not torch.equal(early, plain) and not torch.equal(early, whole)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"alpha": float("nan")}, "alpha is nan, expected a number from 0"),
        ({"alpha": -1.0}, "alpha is -1.0, expected a number from 0"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "starts at 0.6 and ends at 0.5"),
    ],
)
def test_impossible_settings(comfy, toy, inputs, message):
    with pytest.raises(ValueError, match=message):
        comfy.run("WeftMitigatingGradient", model=toy.model, **inputs)


def scales_used(model):
    """A clone of the model that notes the guidance scale of every step."""
    used, noting = [], model.clone()

    def note(arguments):
        used.append(arguments["cond_scale"])
        return arguments["denoised"]

    noting.set_model_sampler_post_cfg_function(note)
    return noting, used


def test_scale_falls_at_the_papers_place(comfy, toy, sample):
    """25 DDIM steps of a schedule of 1,000: the first 7 (961 to 721) lie before 0.7 T, and 681 behind it."""
    model, used = scales_used(toy.model)
    sample(comfy.run("WeftGuidanceSchedule", model=model)[0], steps=25, scheduler="ddim_uniform", cfg=3.0)
    assert used == [12.5] * 7 + [7.5] * 18
    used.clear()
    sample(model, steps=2, cfg=3.0)
    assert used == [3.0, 3.0]


def test_scale_on_lines_for_flow_models(comfy, core_models, run):
    model, shape = core_models["wan"]()
    noting, used = scales_used(model)
    scheduled = comfy.run("WeftGuidanceSchedule", model=noting, points="0: 9, 1: 1", between="lines")[0]
    run(scheduled, shape, steps=4)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.run("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)[0][:4]
    positions = [
        next(p / 1000 for p in range(1001) if sampling.percent_to_sigma(p / 1000) <= s) for s in sigmas.tolist()
    ]
    assert used == pytest.approx([9 - 8 * position for position in positions], abs=0.02)


def test_a_scale_of_one_takes_one_branch(comfy, core_models, run):
    from comfy.patcher_extension import WrappersMP

    model, shape = core_models["wan"]()
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    run(comfy.run("WeftGuidanceSchedule", model=model, points="0: 4, 0.5: 1")[0], shape, steps=4, cfg=1.0)
    assert rows[0] == 2 and rows[-1] == 1


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("", "The curve is empty"),
        ("0: 12, 0.3", "expected a pair"),
        ("0: 12, 3: 7", "positions go from 0"),
        ("0: -1", "Found the scale -1"),
    ],
)
def test_schedules_that_cannot_be_read(comfy, toy, points, message):
    with pytest.raises(ValueError, match=message):
        comfy.run("WeftGuidanceSchedule", model=toy.model, points=points)


def test_guiders_without_one_scale_pass_with_a_line(comfy, toy, caplog):
    scheduled = comfy.run("WeftGuidanceSchedule", model=toy.model)[0]
    guider = comfy.run("BasicGuider", model=scheduled, conditioning=toy.positive)[0]
    inputs = {
        "noise": comfy.run("RandomNoise", noise_seed=1)[0],
        "sampler": comfy.run("KSamplerSelect", sampler_name="euler")[0],
        "sigmas": comfy.run("BasicScheduler", model=toy.model, scheduler="normal", steps=2, denoise=1.0)[0],
        "latent_image": comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16)[0],
    }
    with caplog.at_level(logging.WARNING):
        latent = comfy.run("SamplerCustomAdvanced", guider=guider, **inputs)[0]["samples"]
    assert latent.isfinite().all() and "has no single scale" in caplog.text
