"""Extend Video: what is there stays, what is made is what ComfyUI's masks make, and any end can be gone on from."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

TEXT = torch.randn(1, 6, 12, generator=torch.manual_seed(1))
# Rounding of float32: the two ways differ in nothing else.
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def held_back(comfy, monkeypatch):
    """The nodes that are not offered yet, for these tests alone."""
    for node in getattr(comfy.ours("nodes.long_video"), "HELD_BACK", []):
        monkeypatch.setitem(comfy.mappings, node.define_schema().node_id, node)


@pytest.fixture
def extend(comfy, toy):
    """Extend Video on the small LVDM from two latents (8 frames), in two steps; more inputs replace these."""

    def run(model=toy.model, cfg=1.0, **changed):
        if "guider" not in changed:
            texts = {"positive": toy.positive, "negative": toy.negative}
            changed["guider"] = comfy.run("CFGGuider", model=model, **texts, cfg=cfg)[0]
        inputs = {
            "sampler": comfy.run("KSamplerSelect", sampler_name="euler")[0],
            "sigmas": sigmas(comfy, model),
            "start": {"samples": clip(2)},
            **{"seed": 7, "frames": 32, "window": 16, "overlap": 4, "perturbation": 0.0, "segments": ""},
            "head_start": 0.0,
            **changed,
        }
        return comfy.run("WeftExtendVideo", **inputs)[0]["samples"]

    return run


def sigmas(comfy, model, steps=2):
    return comfy.run("BasicScheduler", model=model, scheduler="normal", steps=steps, denoise=1.0)[0]


def clip(latents, seed=0, channels=4):
    return torch.randn(1, channels, latents, 8, 8, generator=torch.manual_seed(seed))


def counted(model, at=None, error=None):
    """A clone that counts the calls of its network, and raises an error at one of them."""
    from comfy.patcher_extension import WrappersMP

    calls, clone = [], model.clone()

    def count(executor, *args, **kwargs):
        calls.append(args[0].shape)
        if len(calls) == at:
            raise error
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return clone, calls


def test_the_start_stays_and_windows_follow(extend, toy):
    """8 latents of which 2 are there, windows of 4 that share 1: two windows of two network calls."""
    model, calls = counted(toy.model)
    video = extend(model)
    assert video.shape == (1, 4, 8, 8, 8) and video.isfinite().all()
    assert torch.equal(video[:, :, :2], clip(2))
    assert calls == [(1, 4, 4, 8, 8)] * 2 * 2
    assert torch.equal(video, extend()), "the same seed gives the same video"
    assert (video - extend(seed=8))[:, :, 2:].abs().mean() > 0.1


def test_a_window_is_a_masked_sampling_of_the_core(comfy, extend, toy):
    """The same by hand: Set Latent Noise Mask and SamplerCustomAdvanced with the window's noise."""
    video = extend(frames=16)
    inner = toy.model.model
    latent = inner.process_latent_out(torch.zeros(1, 4, 4, 8, 8))
    latent[:, :, :2] = clip(2)
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1).expand(4, 8, 8)
    guider = comfy.run("CFGGuider", model=toy.model, positive=toy.positive, negative=toy.negative, cfg=1.0)[0]
    by_hand = comfy.run(
        "SamplerCustomAdvanced",
        noise=comfy.run("RandomNoise", noise_seed=7)[0],
        guider=guider,
        sampler=comfy.run("KSamplerSelect", sampler_name="euler")[0],
        sigmas=sigmas(comfy, toy.model),
        latent_image={"samples": latent, "noise_mask": mask},
    )[0]["samples"]
    torch.testing.assert_close(video[:, :, 2:], by_hand[:, :, 2:], **CLOSE)
    torch.testing.assert_close(video[:, :, :2], by_hand[:, :, :2], **CLOSE)


SEGMENTS = {"frames": 44, "segments": "a clip"}
"""Three windows on disk."""


@pytest.fixture
def folder(comfy):
    """Where the segments are kept; emptied before and after."""
    import shutil

    folder = comfy.base / "output" / "weft_segments" / "a clip"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_segments_are_what_was_made(extend, folder):
    video = extend(**SEGMENTS)
    names = [f"segment_{number:05}.safetensors" for number in (1, 2, 3)]
    (run,) = folder.iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", *names]
    made = torch.cat([load_file(run / name)["samples"] for name in names], dim=2)
    assert torch.equal(made, video[:, :, 2:])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_an_interrupted_run_goes_on_with_the_same_bits(comfy, extend, toy, folder, caplog, sampler):
    """Interrupted within the third window: two are there, one is made."""
    from comfy.model_management import InterruptProcessingException

    given = {**SEGMENTS, "sampler": comfy.run("KSamplerSelect", sampler_name=sampler)[0]}
    whole = extend(**{**given, "segments": ""})
    assert not folder.exists()
    interrupted, calls = counted(toy.model, at=5, error=InterruptProcessingException())
    with pytest.raises(InterruptProcessingException):
        extend(interrupted, **given)
    assert len(calls) == 5 and len(list(folder.glob("*/segment_*"))) == 2
    model, calls = counted(toy.model)
    with caplog.at_level(logging.INFO):
        assert torch.equal(extend(model, **given), whole)
    assert len(calls) == 2 and "going on after 2 finished segments" in caplog.text
    calls.clear()
    assert torch.equal(extend(model, **given), whole) and not calls


@pytest.mark.parametrize("change", ["seed", "sigmas", "start", "end", "sampler", "cfg", "frames", "text", "lora"])
def test_changed_inputs_start_anew(comfy, extend, toy, folder, caplog, change):
    """What there was stays: with the first inputs again, nothing is to be made."""
    whole = extend(**SEGMENTS)
    patched = toy.model.clone()
    key = next(key for key in patched.model_state_dict() if key.endswith("conv_in.weight"))
    patched.add_patches({key: (0.1 * torch.randn(patched.model_state_dict()[key].shape),)})
    changes = {
        "seed": {"seed": 8},
        "sigmas": {"sigmas": sigmas(comfy, toy.model, 3)},
        "start": {"start": {"samples": clip(2, seed=4)}},
        "end": {"end": {"samples": clip(2, seed=4)}},
        "sampler": {"sampler": comfy.run("KSamplerSelect", sampler_name="heun")[0]},
        "cfg": {"cfg": 2.0},
        "frames": {"frames": 40},
        "text": {"prompts": "16: a blue square", "clip": toy.clip},
        "lora": {"model": patched},
    }
    given = {**SEGMENTS, **changes[change]}
    with caplog.at_level(logging.INFO):
        found = extend(**given)
    assert "keeps 3 segments of other inputs" in caplog.text
    assert torch.equal(found, extend(**{**given, "segments": ""}))
    model, calls = counted(toy.model)
    assert torch.equal(extend(model, **SEGMENTS), whole) and not calls


def test_a_damaged_segment_is_made_again(extend, toy, folder, caplog):
    """Edited by hand, cut short, or gone: it and those after it are made again, and the log says so."""
    whole = extend(**SEGMENTS)
    (second,) = folder.glob("*/segment_00002.safetensors")
    content = second.read_bytes()

    def edit():
        save_file({name: tensor + 1 for name, tensor in load_file(second).items()}, second)

    for damage in (edit, lambda: second.write_bytes(content[:-1]), second.unlink):
        damage()
        caplog.clear()
        model, calls = counted(toy.model)
        assert torch.equal(extend(model, **SEGMENTS), whole) and len(calls) == 4
        assert "segment_00002.safetensors is missing or not what was written: segments from number 2" in caplog.text
        assert second.read_bytes() == content


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1, "inputs": {}, "files": [{"name": "../x", "sha256": "0"}]}'])
def test_a_damaged_manifest_starts_anew(extend, folder, caplog, text):
    whole = extend(**SEGMENTS)
    (manifest,) = folder.glob("*/manifest.json")
    manifest.write_text(text)
    assert torch.equal(extend(**SEGMENTS), whole)
    assert "manifest.json is not what was written: starting anew" in caplog.text
    assert len(json.loads(manifest.read_text())["files"]) == 3


def test_a_disk_that_is_full_keeps_what_is_there(comfy, extend, folder, monkeypatch):
    """The third file cannot be written; with room the run goes on from two."""
    import errno
    import os

    real = os.replace

    def full(source, target):
        if str(target).endswith("00003.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"Segment 3 could not be written.*No space left.*The 2 segments before it"):
            extend(**SEGMENTS)
    names = sorted(path.name for path in folder.glob("*/*"))
    assert names == ["manifest.json", "segment_00001.safetensors", "segment_00002.safetensors"]
    assert torch.equal(extend(**SEGMENTS), extend(**{**SEGMENTS, "segments": ""}))


def test_the_graph_before_the_node_counts(comfy):
    """Its kinds, widgets and links do, the numbers of nodes and what is elsewhere do not."""
    describe = comfy.ours("model_loaders.bridge.fingerprint").graph_fingerprint
    graph = {
        "1": {"class_type": "Load", "inputs": {"name": "a"}},
        "2": {"class_type": "Extend", "inputs": {"model": ["1", 0], "frames": 8}},
        "3": {"class_type": "Save", "inputs": {"video": ["2", 0], "fps": 8}},
    }
    found = describe(graph, "2")
    renamed = {"7": graph["1"], "9": {"class_type": "Extend", "inputs": {"model": ["7", 0], "frames": 8}}}
    assert describe(renamed, "9") == found
    graph["3"]["inputs"]["fps"] = 16
    assert describe(graph, "2") == found
    graph["1"]["inputs"]["name"] = "b"
    assert describe(graph, "2") != found
    graph["2"]["inputs"]["clear"] = True
    assert describe(graph, "2") != describe(graph, "2", "clear")
    graph["1"]["inputs"]["name"] = "a"
    assert describe(graph, "2", "clear") == found and graph["2"]["inputs"]["clear"]


def test_clearing_by_the_setting(extend, toy, folder):
    """All samplings of the name are removed, and what is made then is kept."""
    whole = extend(**SEGMENTS)
    extend(**SEGMENTS, seed=8)
    assert len(list(folder.iterdir())) == 2
    model, calls = counted(toy.model)
    assert torch.equal(extend(model, **SEGMENTS, clear=True), whole) and len(calls) == 6
    assert len(list(folder.iterdir())) == 1 and len(list(folder.glob("*/segment_*"))) == 3


def test_clearing_by_the_node(comfy, extend, folder):
    """What is not of Extend Video stays, and so does its folder."""
    extend(**SEGMENTS)
    extend(**SEGMENTS, seed=8)
    mine = next(folder.iterdir()) / "notes.txt"
    mine.write_text("mine")
    (mine.parent / "segment_00004.safetensors.partial").write_bytes(b"cut short")
    node = comfy.mappings["WeftClearSegments"]
    said = node.execute("a clip").ui.as_dict()["text"][0]
    assert said.startswith("7 segments removed (") and [*folder.glob("*/*")] == [mine]
    mine.unlink()
    assert node.execute("a clip").ui.as_dict()["text"][0].startswith("0 segments removed")
    assert not folder.exists()
    with pytest.raises(ValueError, match="segments is empty: name what"):
        node.execute(" ")
    with pytest.raises(ValueError, match="leads out of"):
        node.execute("../a clip")
    assert node.fingerprint_inputs() != node.fingerprint_inputs()


def test_graphs_of_one_name_keep_their_windows(extend, toy, folder):
    """Two samplings in turns, each interrupted: both go on."""
    from comfy.model_management import InterruptProcessingException

    others = {**SEGMENTS, "seed": 8}
    for given in (SEGMENTS, others):
        interrupted, _ = counted(toy.model, at=5, error=InterruptProcessingException())
        with pytest.raises(InterruptProcessingException):
            extend(interrupted, **given)
    for given in (SEGMENTS, others):
        model, calls = counted(toy.model)
        assert torch.equal(extend(model, **given), extend(**{**given, "segments": ""})) and len(calls) == 2


def test_a_write_that_the_system_refuses_keeps_what_is_there(extend, folder):
    """The kernel's limit on the size of files, which a window does not fit in but its manifest does."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(OSError, match=r"Segment 1 could not be written.*File too large.*The 0 segments before it"):
            extend(**SEGMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(folder.glob("*/*")), "no part of a file is left"
    assert torch.equal(extend(**SEGMENTS), extend(**{**SEGMENTS, "segments": ""}))


def test_progress_is_one_bar_and_previews_show_what_is_new(comfy, extend, monkeypatch):
    """Three windows of two steps; previews show the latents that are made: three of 8 x 8 in two rows, or one."""
    from latent_preview import LatentPreviewMethod, set_preview_method

    reported = []
    monkeypatch.setattr(comfy_utils(), "PROGRESS_BAR_HOOK", lambda *values, **more: reported.append(values))
    set_preview_method(LatentPreviewMethod.Latent2RGB.value)
    try:
        extend(frames=36)
    finally:
        set_preview_method()
    values = [entry[0] for entry in reported]
    assert values == sorted(values) and values[-1] == 6 and {entry[1] for entry in reported} == {6}
    sizes = [entry[2][1].size for entry in reported if entry[2] is not None]
    assert sizes == [(16, 16)] * 4 + [(8, 8)] * 2


def comfy_utils():
    import comfy.utils

    return comfy.utils


def test_without_a_start_the_first_window_is_free(comfy, extend, toy, sample):
    empty = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16)[0]
    video = extend(start=empty, frames=28, seed=5)
    expected = sample(seed=5, steps=2, cfg=1.0)
    torch.testing.assert_close(video[:, :, :4], expected, **CLOSE)


def test_what_is_there_matters_to_what_is_made(extend):
    other = extend(start={"samples": clip(2, seed=9)}, frames=16)
    assert (other - extend(frames=16))[:, :, 2:].abs().mean() > 0.01


def test_perturbation_lets_go_of_what_is_given_at_low_noise(extend, toy):
    """The network's input at given latents is the clip with the level's own noise above it, and free below it."""
    from comfy.patcher_extension import WrappersMP

    seen, model = [], toy.model.clone()

    def watch(executor, x, sigma, *args, **kwargs):
        seen.append((float(sigma[0]), x.clone()))
        return executor(x, sigma, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    clean = toy.model.model.process_latent_in(clip(2))
    level = toy.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    free = {}
    for perturbation in (0.0, 0.5):
        seen.clear()
        video = extend(model, frames=16, perturbation=perturbation, sigmas=sigmas_between(level))
        assert torch.equal(video[:, :, :2], clip(2))
        noise = [(x[:, :, :2] - clean) / sigma for sigma, x in seen]
        # x = clean + sigma n with the one noise of the window, wherever the clip is held; 1e-3 is float32 over sigma.
        assert (noise[0] - noise[1]).abs().max() < 1e-3
        free[perturbation] = float((noise[0] - noise[3]).abs().max())
    assert free[0.0] < 1e-3 and free[0.5] > 0.1


def test_a_head_start_is_a_still_picture_in_noise(comfy, extend, toy):
    """The network first sees the given latent repeated, in the window's noise at the first level that is left."""
    from comfy.patcher_extension import WrappersMP

    seen, model = [], toy.model.clone()

    def watch(executor, x, sigma, *args, **kwargs):
        seen.append((float(sigma[0]), x.clone()))
        return executor(x, sigma, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    level = toy.model.get_model_object("model_sampling").percent_to_sigma(0.2)
    levels = torch.tensor([3 * level, level, 0.5 * level, 0.0])
    video = extend(model, frames=16, head_start=0.2, sigmas=levels)
    assert [round(sigma / level, 4) for sigma, _ in seen] == [1.0, 0.5] and torch.equal(video[:, :, :2], clip(2))
    still = toy.model.model.process_latent_in(torch.cat([clip(2), *[clip(2)[:, :, 1:]] * 2], dim=2))
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(7))
    # In units of the level: rounding of float32.
    torch.testing.assert_close((seen[0][1] - still) / level, noise, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="head_start is 0.9, after which none of the 3 steps is left"):
        extend(head_start=0.9, sigmas=levels)
    seen.clear()
    empty = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=64, height=64, frames=16)[0]
    extend(model, frames=16, start=empty, head_start=0.2, sigmas=levels)
    assert len(seen) == 3, "nothing is given to the first window"


def sigmas_between(level):
    """Two steps above a noise level, three below."""
    return torch.tensor([3 * level, 2 * level, 0.9 * level, 0.6 * level, 0.3 * level, 0.0])


def test_texts_along_the_video(comfy, extend, toy):
    """A line holds for the windows whose first new frame it has reached; the first two windows begin at 8 and 16."""
    plain = extend(cfg=3.0)
    same = extend(cfg=3.0, prompts="0: a red circle", clip=toy.clip)
    torch.testing.assert_close(same, plain, rtol=0, atol=0)
    later = extend(cfg=3.0, prompts="16: a blue square", clip=toy.clip)
    assert torch.equal(later[:, :, :4], plain[:, :, :4])
    assert (later - plain)[:, :, 5:].abs().mean() > 1e-3
    blue = comfy.run("CLIPTextEncode", clip=toy.clip, text="a blue square")[0]
    guider = comfy.run("CFGGuider", model=toy.model, positive=blue, negative=toy.negative, cfg=3.0)[0]
    begun = {"samples": plain[:, :, :5]}
    with pytest.raises(ValueError, match="prompts has texts, and nothing encodes them: connect the model's CLIP"):
        extend(prompts="16: a blue square")
    with pytest.raises(ValueError, match="Found the line 'a blue square', expected the number of a frame"):
        extend(prompts="a blue square", clip=toy.clip)
    assert extend(guider=guider, start=begun).shape == plain.shape


def test_a_loop_ends_where_it_begins(extend, toy):
    """The last window is given the first latent behind its end."""
    model, seen = seen_by_the_sampler(toy.model)
    video = extend(model, loop=True)
    latent, mask = seen[-1]
    assert mask == [0, 1, 1, 0]
    assert torch.equal(latent[:, :, 3], video[:, :, 0]) and torch.equal(latent[:, :, 0], video[:, :, 5])


def test_several_videos_at_once(extend):
    start = torch.cat([clip(2), clip(2, seed=3)])
    video = extend(start={"samples": start})
    assert video.shape[0] == 2 and torch.equal(video[:, :, :2], start)
    assert not torch.equal(video[0], video[1])


@pytest.mark.parametrize(("kind", "factor"), [("wan", 4), ("cogvideo", 4), ("ltxv", 8)])
def test_core_models(comfy, core_models, extend, kind, factor):
    """Flow and velocity, one noise level or one for each latent; causal: 5 latents are 4 times the factor and 1."""
    model, shape = core_models[kind]()
    said = {"attention_mask": torch.ones(1, 6, dtype=torch.long)} if kind == "ltxv" else {}
    guider = comfy.run("CFGGuider", model=model, positive=[[TEXT, said]], negative=[[0 * TEXT, said]], cfg=2.0)[0]
    start = torch.randn(*shape[:2], 2, *shape[3:], generator=torch.manual_seed(2))
    frames, window = 4 * factor + 1, 2 * factor + 1
    given = {"guider": guider, "sigmas": sigmas(comfy, model), "start": {"samples": start}, "overlap": factor}
    video = extend(model, **given, frames=frames, window=window, perturbation=0.2)
    assert video.shape == shape and video.isfinite().all()
    assert torch.equal(video[:, :, :2], start)
    assert video[:, :, 2:].std((0, 1, 3, 4)).min() > 0.1
    end = {"samples": torch.randn(*shape[:2], 1, *shape[3:], generator=torch.manual_seed(3))}
    joined = extend(model, **given, frames=frames, window=window, end=end)
    assert torch.equal(joined[:, :, :2], start) and torch.equal(joined[:, :, 4:], end["samples"])
    assert joined.isfinite().all() and (joined - video)[:, :, 3].abs().mean() > 1e-3
    near = f"choose {frames - factor} or {frames}"
    with pytest.raises(ValueError, match=f"this model takes multiples of {factor} plus 1: {near}"):
        extend(model, **given, frames=frames - 1, window=window)


def test_higen_goes_on_around_its_picture(comfy, loaded_higen, extend):
    """A latent for each frame; windows are as long as the content cues, and all of them have the one picture."""
    text = torch.randn(1, 7, 20, generator=torch.manual_seed(1))
    content = comfy.run("WeftHiGenContent", motion="0: 300", appearance=0.7, frames=4)[0]
    picture = {"samples": clip(1)}
    model = comfy.run("WeftHiGenTemporalReasoning", model=loaded_higen, prior=picture, content=content)[0]
    guider = comfy.run("CFGGuider", model=model, positive=[[text, {}]], negative=[[0 * text, {}]], cfg=2.0)[0]
    video = extend(model, guider=guider, frames=8, window=4, overlap=1)
    assert video.shape == (1, 4, 8, 8, 8) and video.isfinite().all() and torch.equal(video[:, :, :2], clip(2))
    with pytest.raises(ValueError, match="The latent has 5 frames, the content was made for 4"):
        extend(model, guider=guider, frames=8, window=5, overlap=1)


@pytest.fixture
def loaded_higen(comfy, tiny_networks):
    return tiny_networks("higen")[0]


def seen_by_the_sampler(model):
    """A clone, and the latents and masks (one for each latent) that its windows are sampled from."""
    from comfy.patcher_extension import WrappersMP

    seen, clone = [], model.clone()

    def watch(executor, noise, latent, sampler, levels, mask, *args, **kwargs):
        seen.append((latent.clone(), None if mask is None else mask[0, 0, :, 0, 0].tolist()))
        return executor(noise, latent, sampler, levels, mask, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "watch", watch)
    return clone, seen


def test_two_clips_are_joined(extend, toy):
    """Two latents, four to make, two: the first window goes on, the second is given one latent at both ends."""
    model, seen = seen_by_the_sampler(toy.model)
    end = {"samples": clip(2, seed=4)}
    video = extend(model, frames=32, end=end)
    assert video.shape[2] == 8
    assert torch.equal(video[:, :, :2], clip(2)) and torch.equal(video[:, :, 6:], end["samples"])
    assert [mask for _, mask in seen] == [[0, 0, 1, 1], [0, 1, 1, 0]]
    latent = seen[-1][0]
    assert torch.equal(latent[:, :, 0], video[:, :, 3]) and torch.equal(latent[:, :, 3], video[:, :, 6])
    other = extend(frames=32, end={"samples": clip(2, seed=5)})
    assert torch.equal(other[:, :, :4], video[:, :, :4]) and (other - video)[:, :, 4:6].abs().mean() > 0.01


def test_bad_input(comfy, extend, core_models):
    with pytest.raises(ValueError, match=r"overlap is 16 frames, 4 latents, window 16 frames, 4 latents: take an"):
        extend(overlap=16)
    with pytest.raises(ValueError, match="frames is 4, the start clip has 8: choose 8 or more"):
        extend(frames=4)
    with pytest.raises(ValueError, match=r"start clip is a latent of shape \(1, 16, 2, 8, 8\), this model takes"):
        extend(start={"samples": clip(2, channels=16)})
    with pytest.raises(ValueError, match="overlap is 6, this model takes multiples of 4: choose 4 or 8"):
        extend(overlap=6)
    with pytest.raises(ValueError, match="A loop of 4 latents in windows of 4 cannot be closed"):
        extend(frames=16, loop=True)
    for how in ({"loop": True}, {"end": {"samples": clip(1)}}):
        with pytest.raises(ValueError, match="given 2 at both ends, which leaves none to make"):
            extend(overlap=8, **how)
    with pytest.raises(ValueError, match="leads to given latents at its end cannot also be a loop"):
        extend(loop=True, end={"samples": clip(1)})
    with pytest.raises(ValueError, match="frames is 32, the start and end clips have 36: choose 36 or more"):
        extend(end={"samples": clip(7)})
    with pytest.raises(ValueError, match=r"end clip one of \(2, 4, 1, 8, 8\): both need the same number of videos"):
        extend(end={"samples": clip(1).repeat(2, 1, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"The end clip is a latent of shape \(1, 16, 1, 8, 8\), this model takes"):
        extend(end={"samples": clip(1, channels=16)})
    with pytest.raises(ValueError, match="segments is '../../elsewhere', which leads out of"):
        extend(segments="../../elsewhere")
    model, shape = core_models["images"]()
    guider = comfy.run("CFGGuider", model=model, positive=[[TEXT, {}]], negative=[[TEXT, {}]], cfg=1.0)[0]
    with pytest.raises(
        ValueError, match="This model makes images: Extend Video takes models whose latents have a time"
    ):
        extend(model, guider=guider, start={"samples": torch.ones(shape)})
    assert torch.equal(extend(frames=8), clip(2)), "nothing is to be made"
