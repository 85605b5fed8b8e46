"""Which caption holds for which frames of a workflow's video."""

import json
from pathlib import Path

import pytest

from weft.tools.clips import Clip, clips
from weft.tools.console import Failure

API = Path(__file__).resolve().parents[2] / "workflows" / "api"


def load(name: str) -> dict:
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def texts(graph: dict) -> dict[str, str]:
    """Texts by the titles of their nodes."""
    return {node["_meta"]["title"]: node["inputs"]["text"] for node in graph.values() if "text" in node["inputs"]}


def test_text_to_video():
    graph = load("LVDM text to video")
    assert clips(graph) == [Clip(texts(graph)["Prompt"], slice(0, 16))]


def test_frames_in_the_batch():
    graph = load("HARIVO text to video")
    assert clips(graph) == [Clip(texts(graph)["Prompt"], slice(0, 8))]


def test_a_caption_is_found_behind_a_controlnet():
    graph = load("HARIVO with ControlNet keyframes")
    assert clips(graph) == [Clip(texts(graph)["Prompt"], slice(0, 8))]
    applied = next(node["inputs"] for node in graph.values() if node["class_type"] == "ControlNetApplyAdvanced")
    applied["positive"] = ["18", 0]
    with pytest.raises(Failure, match=r"node 18 \(Canny\): expected a text, or what adds to one"):
        clips(graph)


def test_the_last_sampler_says_what_a_changed_video_shows():
    graph = load("LVDM video to video")
    assert clips(graph) == [Clip(texts(graph)["What it becomes"], slice(0, 16))]


def test_joined_clips_have_a_caption_each():
    graph = load("LVDM one clip after the other")
    expected = [Clip(texts(graph)["Prompt"], slice(0, 16)), Clip(texts(graph)["Second prompt"], slice(16, 32))]
    assert clips(graph) == expected
    joining = next(node["inputs"] for node in graph.values() if node["class_type"] == "LatentConcat")
    joining["samples1"], joining["samples2"] = joining["samples2"], joining["samples1"]
    assert [clip.caption for clip in clips(graph)] == [clip.caption for clip in reversed(expected)]


def test_a_video_that_leads_to_another_clip_has_three_captions():
    graph = load("Join two clips")
    prompts = next(node["inputs"]["prompts"] for node in graph.values() if node["class_type"] == "WeftExtendVideo")
    expected = [
        Clip(texts(graph)["Prompt of the first clip"], slice(0, 16)),
        Clip(prompts.removeprefix("16: "), slice(16, 24)),
        Clip(texts(graph)["Prompt of the second clip"], slice(24, 40)),
    ]
    assert clips(graph) == expected


def test_what_cannot_be_followed_is_named():
    graph = load("LVDM text to video")
    graph["6"] = {"class_type": "ImageFlip", "inputs": {"image": ["5", 0]}}
    with pytest.raises(Failure, match=r"node 6 \(ImageFlip\)"):
        clips(graph)
    del graph["8"]
    with pytest.raises(Failure, match="0 Save Video nodes"):
        clips(graph)


def test_a_video_around_a_picture_has_the_length_of_its_content():
    graph = load("LVDM text to video")
    content = {"frames": 12, "images": ["6", 0]}
    graph["9"] = {"class_type": "WeftHiGenContentFromVideo", "inputs": content}
    temporal = {"prior": ["4", 0], "content": ["9", 0]}
    graph["10"] = {"class_type": "WeftHiGenTemporalReasoning", "inputs": temporal}
    graph["11"] = {"class_type": "KSampler", "inputs": {**graph["5"]["inputs"], "latent_image": ["10", 1]}}
    graph["7"]["inputs"]["images"] = ["11", 0]
    for frames, length in ((12, 12), (0, 16)):
        content["frames"] = frames
        assert clips(graph) == [Clip(texts(graph)["Prompt"], slice(0, length))]


def test_an_extended_video_has_the_captions_of_its_lines():
    graph = load("LVDM text to video")
    extending = {"start": ["5", 0], "frames": 40, "prompts": "16: a cat\n28: a dog: asleep\n"}
    graph["9"] = {"class_type": "WeftExtendVideo", "inputs": extending}
    graph["8"] = {"class_type": "WeftSaveLongVideo", "inputs": {"samples": ["9", 0]}}
    said = [(texts(graph)["Prompt"], 0, 16), ("a cat", 16, 28), ("a dog: asleep", 28, 40)]
    assert clips(graph) == [Clip(text, slice(begin, end)) for text, begin, end in said]
    extending["prompts"] = "20: a cat"
    with pytest.raises(Failure, match="expected a text from frame 16 on, where the start clip ends"):
        clips(graph)
