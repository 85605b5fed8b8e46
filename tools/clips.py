"""What a workflow's video is asked to show: the captions of its clips, read from the graph in API format."""

from dataclasses import dataclass

from .console import Failure

PASSED_ON = ("video", "images", "pixels", "samples")
"""Inputs of the nodes that show the same clips in another form."""


@dataclass(frozen=True)
class Clip:
    """A run of a video's frames, and the text that the last sampler made them from."""

    caption: str
    frames: slice


def clips(graph: dict[str, dict]) -> list[Clip]:
    """Return the clips of the saved video in the order of time; raises Failure where a node cannot be followed."""
    saving = [key for key, node in graph.items() if node["class_type"] in ("SaveVideo", "WeftSaveLongVideo")]
    if len(saving) != 1:
        raise Failure(f"the graph has {len(saving)} Save Video nodes, expected one")
    found: list[Clip] = []
    for caption, length in _shown(graph, saving[0]):
        begin = found[-1].frames.stop if found else 0
        found.append(Clip(caption, slice(begin, begin + length)))
    return found


def _shown(graph: dict[str, dict], key: str) -> list[tuple[str, int]]:
    """Return caption and number of frames of every clip that a node gives; latents without noise have no caption."""
    kind, inputs = graph[key]["class_type"], graph[key]["inputs"]
    if kind in ("WeftEmptyVideoLatent", "WeftHiGenContent", "WeftHiGenContentFromVideo") and inputs["frames"]:
        return [("", inputs["frames"])]
    if kind == "EmptyLatentImage":  # frames in the batch
        return [("", inputs["batch_size"])]
    if kind == "WeftHiGenTemporalReasoning":
        return _shown(graph, inputs["content"][0])
    if kind == "LatentConcat" and inputs["dim"] == "t":
        return _shown(graph, inputs["samples1"][0]) + _shown(graph, inputs["samples2"][0])
    if kind == "WeftExtendVideo":
        start, end = (_shown(graph, inputs[name][0]) if name in inputs else [] for name in ("start", "end"))
        begin, following = (sum(length for _, length in part) for part in (start, end))
        return [*start, *_said(inputs["prompts"], begin, inputs["frames"] - following), *end]
    if kind in ("KSampler", "SamplerCustomAdvanced"):
        guided = inputs if kind == "KSampler" else graph[inputs["guider"][0]]["inputs"]
        caption = _caption(graph, guided["positive"][0])
        return [(caption, length) for _, length in _shown(graph, inputs["latent_image"][0])]
    if kind == "WeftShow1ExpertTranslation":
        caption = _caption(graph, inputs["positive"][0])
        return [(caption, length) for _, length in _shown(graph, inputs["images"][0])]
    if kind == "ImageScale":
        return _shown(graph, inputs["image"][0])
    passed_on = [inputs[name] for name in PASSED_ON if name in inputs]
    if len(passed_on) != 1:
        raise Failure(f"node {key} ({kind}): what it does to the clips is not known here")
    return _shown(graph, passed_on[0][0])


def _caption(graph: dict[str, dict], key: str) -> str:
    """Return the text of a node, or of the one whose conditioning it adds to, as Apply ControlNet does."""
    inputs = graph[key]["inputs"]
    if "text" in inputs:
        return inputs["text"]
    if "positive" not in inputs:
        raise Failure(f"node {key} ({graph[key]['class_type']}): expected a text, or what adds to one")
    return _caption(graph, inputs["positive"][0])


def _said(prompts: str, begin: int, end: int) -> list[tuple[str, int]]:
    """Return caption and number of frames of each line `frame: text`; the first one begins where the start ends."""
    lines = [line.split(":", 1) for line in prompts.splitlines() if line.strip()]
    frames = [int(frame) for frame, _ in lines]
    if not frames or frames[0] != begin:
        raise Failure(f"prompts of Extend Video: expected a text from frame {begin} on, where the start clip ends")
    lengths = [stop - frame for frame, stop in zip(frames, [*frames[1:], end], strict=True)]
    return [(text.strip(), length) for (_, text), length in zip(lines, lengths, strict=True)]
