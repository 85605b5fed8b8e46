"""Every API workflow that is shipped, run as shipped; what it makes is what its captions say.

One that needs downloads, which its notes declare, runs on small random stand-ins of these files.
"""

import json
from pathlib import Path

import pytest

from weft.tools.clips import clips
from weft.tools.downloads import needed
from weft.training.data.tracker import score
from weft.training.data.video_files import read_video

API = sorted((Path(__file__).resolve().parents[2] / "workflows" / "api").glob("*.json"))
ANY_MODEL = "Mitigating gradient on any video model"
IMAGE_MODEL = "HARIVO on Stable Diffusion 1.5"
CASCADE = "Show-1 text to video (full cascade)"
KEYFRAMES = "Interpolate any keyframes"


@pytest.mark.parametrize("path", [path for path in API if not needed(path)], ids=lambda path: path.stem)
def test_the_video_shows_what_the_captions_say(client, path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    frames, rate = read_video(client.video(client.run(graph)))
    shown = clips(graph)
    assert len(frames) == shown[-1].frames.stop and rate == 8
    for clip in shown:
        found = score(frames[clip.frames], clip.caption)
        assert found.colour and found.shape and found.direction and found.background, (clip, found)


def test_only_these_need_downloads():
    """Each of them has a test of its own, below or in test_show1.py."""
    assert [path.stem for path in API if needed(path)] == [IMAGE_MODEL, KEYFRAMES, ANY_MODEL, CASCADE]


def test_mitigating_gradient_on_a_small_wan(client, on_stand_ins):
    """Wan's MODEL and VAE by ComfyUI's loaders; the text encoder is replaced. Smaller pictures and fewer steps."""
    graph = on_stand_ins(ANY_MODEL)
    kinds = [node["class_type"] for node in graph.values()]
    assert {"UNETLoader", "VAELoader", "StandInCLIPLoader"} <= set(kinds) and "CLIPLoader" not in kinds
    graph["8"]["inputs"] |= {"width": 64, "height": 64}
    graph["9"]["inputs"]["steps"] = 6
    videos = []
    for alpha in (graph["5"]["inputs"]["alpha"], 0.0):
        graph["5"]["inputs"]["alpha"] = alpha
        frames, rate = read_video(client.video(client.run(graph)))
        assert frames.shape == (graph["8"]["inputs"]["length"], 64, 64, 3) and rate == 16
        assert frames.std() > 1
        videos.append(frames.astype(int))
    # Levels of 0 to 255; the same video compressed twice differs by none.
    assert abs(videos[0] - videos[1]).mean() > 1


def test_motion_modules_on_a_small_image_model(client, on_stand_ins):
    """AnimateDiff's file by our loader, the image model replaced; without the modules the video is another one."""
    graph = on_stand_ins(IMAGE_MODEL)
    assert {node["class_type"] for node in graph.values()} >= {"StandInCheckpointLoaderSimple", "WeftLoadMotion"}
    graph["8"]["inputs"] |= {"width": 64, "height": 64}
    graph["9"]["inputs"]["steps"] = 6
    videos = []
    for model in (["3", 0], ["1", 0]):
        graph["4"]["inputs"]["model"] = model
        frames, rate = read_video(client.video(client.run(graph)))
        assert frames.shape == (graph["8"]["inputs"]["batch_size"], 64, 64, 3) and rate == 8
        assert frames.std() > 1
        videos.append(frames.astype(int))
    assert abs(videos[0] - videos[1]).mean() > 1


def test_every_node_is_used_by_a_workflow(server):
    nodes = {name for name in json.loads(server.get("/object_info")) if name.startswith("Weft")}
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in API]
    used = {node["class_type"] for graph in graphs for node in graph.values()}
    assert nodes <= used, f"no workflow uses {sorted(nodes - used)}"
