"""Every API workflow that is shipped, run as shipped; what it makes is what its captions say.

One that needs downloads, which its notes declare, runs on small random stand-ins of these files.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    """Each of them has a test of its own below."""
    assert [path.stem for path in API if needed(path)] == [IMAGE_MODEL, KEYFRAMES, ANY_MODEL, CASCADE]


def with_stand_ins(name, info) -> dict:
    """The graph, which finds small files of the names that it needs; loaders that cannot read one are replaced."""
    path = next(path for path in API if path.stem == name)
    graph = json.loads(path.read_text(encoding="utf-8"))
    for key in needed(path):
        stand_in = f"StandIn{graph[key]['class_type']}"
        if stand_in in info:
            taken = info[stand_in]["input"]["required"]
            kept = {name: value for name, value in graph[key]["inputs"].items() if name in taken}
            graph[key] |= {"class_type": stand_in, "inputs": kept}
    return graph


def test_mitigating_gradient_on_a_small_wan(server, client):
    """Wan's MODEL and VAE by ComfyUI's loaders; the text encoder is replaced. Smaller pictures and fewer steps."""
    graph = with_stand_ins(ANY_MODEL, json.loads(server.get("/object_info")))
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


def test_motion_modules_on_a_small_image_model(server, client):
    """AnimateDiff's file by our loader, the image model replaced; without the modules the video is another one."""
    graph = with_stand_ins(IMAGE_MODEL, json.loads(server.get("/object_info")))
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


def few_steps(graph) -> None:
    """Of every sampling."""
    for node in graph.values():
        node["inputs"] |= {name: 2 for name in ("steps", "first_frame_steps") if name in node["inputs"]}


def test_show1_on_small_stages(server, client):
    """All stages by our loader from files with released names, the text encoders replaced; from 16 x 8 to 72 x 40."""
    graph = with_stand_ins(CASCADE, json.loads(server.get("/object_info")))
    few_steps(graph)
    graph["11"]["inputs"] |= {"width": 16, "height": 8, "frames": 3}
    graph["21"]["inputs"] |= {"width": 72, "height": 40}
    frames, rate = read_video(client.video(client.run(graph)))
    assert frames.shape == (9, 40, 72, 3) and rate == 8
    assert frames.std() > 1
    graph["7"]["inputs"]["value"] = "another text"
    other, _ = read_video(client.video(client.run(graph)))
    assert abs(frames.astype(int) - other).mean() > 1


def test_three_pictures_become_a_video(server, client):
    """Nine frames four times as large as the keyframes, which are among them where they are put back."""
    graph = with_stand_ins(KEYFRAMES, json.loads(server.get("/object_info")))
    few_steps(graph)
    colours = {"4": (200, 30, 30), "5": (30, 200, 30), "6": (30, 30, 200)}
    for key, colour in colours.items():
        Image.new("RGB", (96, 64), colour).save(client.base / "input" / f"keyframe{key}.png")
        graph[key]["inputs"]["image"] = f"keyframe{key}.png"
    graph["12"]["inputs"] |= {"width": 16, "height": 8}
    frames, rate = read_video(client.video(client.run(graph)))
    assert frames.shape == (9, 32, 64, 3) and rate == 8 and frames.std() > 1
    graph["13"]["inputs"]["keep_keyframes"] = True
    graph["15"]["inputs"]["images"] = ["13", 1]
    small, _ = read_video(client.video(client.run(graph)))
    assert small.shape == (9, 8, 16, 3)
    # Flat pictures in a compressed video.
    assert abs(small[::4].mean(axis=(1, 2)) - np.array(list(colours.values()))).max() < 12


def test_every_node_is_used_by_a_workflow(server):
    nodes = {name for name in json.loads(server.get("/object_info")) if name.startswith("Weft")}
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in API]
    used = {node["class_type"] for graph in graphs for node in graph.values()}
    assert nodes <= used, f"no workflow uses {sorted(nodes - used)}"
