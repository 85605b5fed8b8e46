"""Show-1 on the real server, on small files of its released layout: workflows, what people get wrong, interrupts."""

import numpy as np
import pytest
from PIL import Image

from weft.tools.server import HOST
from weft.tools.websocket import WebSocket
from weft.training.data.video_files import read_video

CASCADE = "Show-1 text to video (full cascade)"
KEYFRAMES = "Interpolate any keyframes"
LOADERS = {"base": "1", "interpolation": "2", "sr1": "3", "first frame": "4", "expert": "15"}
COLOURS = {"4": (200, 30, 30), "5": (30, 200, 30), "6": (30, 30, 200)}


@pytest.fixture
def cascade(on_stand_ins) -> dict:
    """Two keyframes of 8 x 8 to five frames of 24 x 16."""
    graph = on_stand_ins(CASCADE, few=True)
    graph["11"]["inputs"] |= {"width": 8, "height": 8, "frames": 2}
    graph["21"]["inputs"] |= {"width": 24, "height": 16}
    return graph


@pytest.fixture
def between(on_stand_ins, client) -> dict:
    """Three flat pictures as keyframes of 8 x 4."""
    graph = on_stand_ins(KEYFRAMES, few=True)
    for key, colour in COLOURS.items():
        Image.new("RGB", (96, 64), colour).save(client.base / "input" / f"keyframe{key}.png")
        graph[key]["inputs"]["image"] = f"keyframe{key}.png"
    graph["12"]["inputs"] |= {"width": 8, "height": 4}
    return graph


def test_text_to_video(client, cascade):
    """All stages by our loader from files with released names, the text encoders replaced."""
    frames, rate = read_video(client.video(client.run(cascade)))
    assert frames.shape == (5, 16, 24, 3) and rate == 8 and frames.std() > 1
    cascade["7"]["inputs"]["value"] = "another text"
    other, _ = read_video(client.video(client.run(cascade)))
    assert abs(frames.astype(int) - other).mean() > 1


def test_three_pictures_become_a_video(client, between):
    """Nine frames four times as large as the keyframes, which are among them where they are put back."""
    frames, rate = read_video(client.video(client.run(between)))
    assert frames.shape == (9, 16, 32, 3) and rate == 8 and frames.std() > 1
    between["13"]["inputs"]["keep_keyframes"] = True
    between["15"]["inputs"]["images"] = ["13", 1]
    small, _ = read_video(client.video(client.run(between)))
    assert small.shape == (9, 4, 8, 3)
    # Flat pictures in a compressed video.
    assert abs(small[::4].mean(axis=(1, 2)) - np.array(list(COLOURS.values()))).max() < 12


# What people get wrong


def failed(client, graph, node) -> str:
    """What the node says."""
    error = client.error(graph)
    assert error["node_id"] == node
    return error["exception_message"]


@pytest.mark.parametrize(
    ("node", "socket", "file", "message"),
    [
        ("11", "model", "interpolation", "show1_interpolation.bin (Show-1's interpolation), expected {} keyframes"),
        ("13", "model", "base", "show1_base.bin (Show-1's keyframes), expected {} interpolation"),
        ("14", "model", "first frame", "if_ii_l.safetensors (Show-1's super-resolution of single pictures), expected"),
        (
            "14",
            "first_frame_model",
            "sr1",
            "show1_sr1.bin (Show-1's super-resolution), expected {} super-resolution of",
        ),
        ("14", "model", "expert", "show1_sr2.bin (no stage of Show-1 on pixels), expected {} super-resolution"),
        ("21", "model", "sr1", "show1_sr1.bin (Show-1's super-resolution), which works on pixels: connect a model in"),
    ],
)
def test_a_file_in_the_socket_of_another_stage(client, cascade, node, socket, file, message):
    cascade[node]["inputs"][socket] = [LOADERS[file], 0]
    assert "Found " + message.format("a model for Show-1's") in failed(client, cascade, node)


def test_sizes_that_a_stage_cannot_take(client, cascade, between):
    cascade["11"]["inputs"] |= {"width": 9}
    expected = "Found frames of width x height 9x8, this stage takes multiples of 2: choose 8x8."
    assert expected in failed(client, cascade, "11")
    between["12"]["inputs"]["height"] = 5
    assert "8x5, this stage takes multiples of 2: scale or crop the keyframes to 8x4" in failed(client, between, "13")
    cascade["11"]["inputs"] |= {"width": 8}
    cascade["21"]["inputs"] |= {"width": 20}
    expected = "width x height is 20x16, this model takes multiples of 8: choose 16x16."
    assert expected in failed(client, cascade, "21")


def test_one_keyframe_alone(client, between, cascade):
    between["12"]["inputs"]["image"] = ["4", 0]
    assert "Found 1 keyframe, expected at least 2: connect as many pictures" in failed(client, between, "13")
    cascade["11"]["inputs"]["frames"] = 1
    (reason,) = client.queue(cascade)["node_errors"]["11"]["errors"]
    assert reason["type"] == "value_smaller_than_min" and "frames" in reason["details"]


@pytest.mark.parametrize(
    ("loader", "file", "node", "message"),
    [
        ("5", "show1_sr2_text_encoder.bin", "11", "text has width 24, this model was made for 64"),
        ("16", "t5xxl_fp16.safetensors", "21", "text has width 64, this model was made for 24"),
    ],
)
def test_a_text_encoder_of_another_width(client, cascade, loader, file, node, message):
    cascade[loader]["inputs"]["clip_name"] = file
    assert message in failed(client, cascade, node)


# Interrupts


def test_interrupted_in_a_stage_and_queued_again(client, cascade):
    """Stages that were finished are not computed again, and the video is that of a run without an interrupt."""
    cascade["14"]["inputs"]["steps"] = 12
    whole = read_video(client.video(client.run(cascade)))[0]
    client.poke("/free", {"unload_models": True, "free_memory": True})  # else all of it comes from the cache
    socket = WebSocket(HOST, client.server.port, "/ws?clientId=show1")
    try:
        prompt = client.server.post("/prompt", {"prompt": cascade, "client_id": "show1"})["prompt_id"]
        for message in socket.messages():
            if message["type"] == "progress" and message["data"]["node"] == "14":
                client.poke("/interrupt")
                break
    finally:
        socket.close()
    kinds = [kind for kind, _ in client.wait(prompt)["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_success" not in kinds
    answer = client.queue(cascade)
    entry = client.wait(answer["prompt_id"])
    assert entry["status"]["status_str"] == "success"
    cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    assert {"11", "13"} <= set(cached) and not {"14", "21"} & set(cached)
    assert np.array_equal(read_video(client.video(entry["outputs"]))[0], whole)
