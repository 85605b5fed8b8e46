"""Long Video: LVDM's mask models through ComfyUI are the planner and the paper's loop, in float64, beside it."""

import copy

import pytest
import torch

from weft.kernels.sampling import long_video
from weft.kernels.sampling.long_video import Given

SEED, STEPS = 7, 10


@pytest.fixture(autouse=True)
def held_back(comfy, monkeypatch):
    """The node that is not offered yet, for these tests alone."""
    for node in comfy.ours("nodes.long_video").HELD_BACK:
        monkeypatch.setitem(comfy.mappings, node.define_schema().node_id, node)


@pytest.fixture
def prediction(comfy):
    return comfy.run("WeftLoadCheckpoint", checkpoint="toy_masked.safetensors")[0]


@pytest.fixture
def between(comfy):
    return comfy.run("WeftLoadCheckpoint", checkpoint="toy_between.safetensors")[0]


@pytest.fixture
def make(comfy, prediction):
    """Long Video of eight latents from two, by ten steps of DDIM without noise; more inputs replace these."""

    def run(model=prediction, **changed):
        sampler, sigmas = comfy.run("WeftReleaseSampler", model=prediction, kind="ddim", steps=STEPS, eta=0.0)
        inputs = {"start": {"samples": clip(2)}, "seed": SEED, "frames": 32, "level": 5, "guidance": 0.1}
        inputs |= {"sampler": sampler, "sigmas": sigmas, "segments": "", **changed}
        return comfy.run("WeftLongVideo", model=model, **inputs)[0]["samples"]

    return run


def clip(latents, seed=0, channels=4):
    return torch.randn(1, channels, latents, 8, 8, generator=torch.manual_seed(seed))


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.manual_seed(seed)).double()


def expected(models, plan, length, start, level, strength):
    """The kernels' driver and sampler, with the noises of the node and copies of the networks in float64."""
    inner = {kind: model.model for kind, model in models.items()}
    with torch.inference_mode(False):
        networks = {kind: copy.deepcopy(model.diffusion_model).double() for kind, model in inner.items()}
    for network in networks.values():
        network.dtype = torch.float64
    schedule, process = inner["prediction"].checkpoint.schedule, inner["prediction"].process_latent_in
    video = torch.zeros(1, 4, long_video.extent(plan, length), 8, 8, dtype=torch.float64)
    video[:, :, : start.shape[2]] = process(start.double())

    def sample(number, window, latents):
        def denoise(x, times, mask, told):
            return networks[window.kind](torch.cat([x, mask], 1), times, noise_level=told)

        seeds = [SEED + number, SEED + number + 2**63]
        noise, fresh = (drawn(latents.shape, seed) for seed in seeds)
        given = Given(latents, window.mask(latents), fresh, *((level, strength) if window.given else (None, 0.0)))
        return long_video.masked_ddim(denoise, schedule, noise, given, STEPS, 0.0, lambda: torch.zeros_like(noise))

    for _ in long_video.walk(plan, video, sample):
        pass
    return inner["prediction"].process_latent_out(video[:, :, :length])


@pytest.mark.parametrize(("level", "guidance"), [(5, 0.1), (-1, 0.0), (0, 1.0)])
@pytest.mark.parametrize("kind", ["autoregressive", "hierarchical"])
def test_it_is_the_papers_loop(make, prediction, between, kind, level, guidance):
    """Within 1e-3 of the latents' spread: float32 against float64 through up to five windows of ten steps."""
    if kind == "autoregressive":
        models, plan, more = {"prediction": prediction}, long_video.autoregressive(8, 4, 1, 2, exact=True), {}
    else:
        models = {"prediction": prediction, "interpolation": between}
        plan, more = long_video.hierarchical(8, known=2), {"interpolation": between}
    found = make(level=level, guidance=guidance, **more)
    told = None if level < 0 else level
    wanted = expected(models, plan, 8, clip(2), told, guidance)
    assert found.shape == (1, 4, 8, 8, 8) and torch.equal(found[:, :, :2], clip(2))
    assert float((found - wanted)[:, :, 2:].abs().max() / wanted[:, :, 2:].std()) < 1e-3


def test_without_a_start_the_first_window_is_free(comfy, make, prediction):
    empty = comfy.run("WeftEmptyVideoLatent", model=prediction, width=64, height=64, frames=16)[0]
    plan = long_video.autoregressive(7, 4, 1, 0, exact=True)
    wanted = expected({"prediction": prediction}, plan, 7, clip(0), 5, 0.1)
    found = make(start=empty, frames=28)
    assert float((found - wanted).abs().max() / wanted.std()) < 1e-3


def test_it_goes_on_after_an_interrupt(comfy, make, prediction, between, interrupting):
    """Two windows of four are on disk; the second queueing makes the other two, and the same bits."""
    import shutil

    folder = comfy.base / "output" / "weft_segments" / "long toy"
    shutil.rmtree(folder, ignore_errors=True)
    given = {"interpolation": between, "guidance": 0.0, "frames": 40}
    whole, (model, interruption) = make(**given), interrupting(between)
    kept = {**given, "segments": "long toy"}
    with interruption(call=STEPS + 2):
        make(**{**kept, "interpolation": model})
    counts = [len(list(folder.glob("*/segment_*")))]
    assert torch.equal(make(**{**kept, "interpolation": model}), whole)
    counts.append(len(list(folder.glob("*/segment_*"))))
    assert 1 < counts[0] < counts[1]
    shutil.rmtree(folder)


def test_bad_input(comfy, make, toy, prediction):
    with pytest.raises(ValueError, match="Found toy.safetensors, expected a model of LVDM that is told which latents"):
        make(model=toy.model)
    with pytest.raises(ValueError, match="Found toy.safetensors, expected a model of LVDM"):
        make(interpolation=toy.model)
    with pytest.raises(ValueError, match="level of given latents is 8, this model takes 0 to 7, or -1 for clean"):
        make(level=8)
    with pytest.raises(ValueError, match=r"start clip is a latent of shape \(1, 3, 2, 8, 8\), this model takes"):
        make(start={"samples": clip(2, channels=3)})
    with pytest.raises(ValueError, match="overlap of 4 and windows of 4 latents"):
        make(overlap=4)
    with pytest.raises(ValueError, match="Found 9 known latents in a video of 8: make the video longer"):
        make(start={"samples": clip(9)})
    with pytest.raises(ValueError, match="frames is 30, this model takes multiples of 4: choose 28 or 32"):
        make(frames=30)
