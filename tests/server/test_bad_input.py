"""What people get wrong: each time an error that names what was found and expected, and a server that goes on."""

import copy
import itertools
import math
import pickle
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from weft.tools.server import HOST
from weft.tools.websocket import WebSocket
from weft.training.data.video_files import read_video

seeds = itertools.count(1000)


@pytest.fixture(autouse=True)
def the_next_prompt_succeeds(client, graph):
    """After whatever a test has done; the seed is new, so that the result does not come from the cache."""
    good = copy.deepcopy(graph)
    good["5"]["inputs"] |= {"seed": next(seeds), "steps": 1}
    yield
    client.run(good)


# Files


def png(folder, name, toy):
    Image.new("RGB", (32, 32)).save(folder / name, "PNG")


def web_page(folder, name, toy):
    (folder / name).write_text("<!DOCTYPE html><html><body>404 not found</body></html>")


def nothing(folder, name, toy):
    (folder / name).write_bytes(b"")


def lora(folder, name, toy):
    keys = ("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight")
    save_file({key: torch.zeros(4, 4) for key in keys}, folder / name)


def truncated(folder, name, toy):
    content = toy.read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def zip_bomb(folder, name, toy):
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}))
        with archive.open("archive/data/0", "w") as entry:
            for _ in range(256):
                entry.write(bytes(1 << 20))


class Code:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def code(folder, name, toy):
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "code": Code(str(folder / "executed"))}, folder / name)


def code_in_old_pickle(folder, name, toy):
    (folder / name).write_bytes(pickle.dumps({"code": Code(str(folder / "executed"))}, protocol=2))


def wrong_shapes(folder, name, toy):
    changed(folder / name, toy, lambda tensor: tensor[:, :-1].contiguous())


def not_a_number(folder, name, toy):
    changed(folder / name, toy, lambda tensor: torch.full_like(tensor, float("nan")))


def missing_tensor(folder, name, toy):
    changed(folder / name, toy, lambda tensor: None)


def changed(path, toy, change):
    """The toy file with its first convolution changed."""
    key = "diffusion_model.conv_in.weight"
    with safe_open(toy, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    value = change(tensors.pop(key))
    save_file(tensors if value is None else {**tensors, key: value}, path, metadata)


FILES = [
    (png, "image.safetensors", r"image\.safetensors is a PNG image, expected .*choose the model's weights"),
    (web_page, "page.safetensors", r"page\.safetensors is a text or web page"),
    (nothing, "empty.safetensors", r"empty\.safetensors is empty"),
    (lora, "lora.safetensors", r"lora\.safetensors is a LoRA, not a model: .*Load LoRA"),
    (truncated, "cut.safetensors", r"cut\.safetensors is damaged or cut off .*download or copy it again"),
    (zip_bomb, "bomb.ckpt", r"bomb\.ckpt has [\d,]+ bytes and would unpack to 268,[\d,]+"),
    (code, "code.ckpt", r"code\.ckpt holds code \((posix|nt)\.mkdir\).*not opened"),
    (code_in_old_pickle, "old_code.ckpt", r"old_code\.ckpt is not a PyTorch checkpoint that holds weights alone"),
    (wrong_shapes, "shapes.safetensors", r"conv_in\.weight has shape \(32, 3, 3, 3\), expected \(32, 4, 3, 3\)"),
    (not_a_number, "nan.safetensors", r"nan\.safetensors holds NaN or infinite values in conv_in\.weight"),
    (missing_tensor, "missing.safetensors", r"conv_in\.weight \(32, 4, 3, 3\) is missing"),
]


@pytest.mark.parametrize(("make", "name", "message"), FILES, ids=[entry[1] for entry in FILES])
def test_wrong_file_in_the_loader(client, graph, make, name, message):
    folder = client.base / "models" / "checkpoints"
    make(folder, name, folder / "toy.safetensors")
    graph["1"]["inputs"]["checkpoint"] = name
    error = client.error(graph)
    assert error["node_type"] == "WeftLoadCheckpoint"
    assert re.search(message, error["exception_message"], re.DOTALL), error["exception_message"]
    assert not (folder / "executed").exists(), "code in a file was run"


def test_a_replaced_file_is_read_again(client, graph):
    """The same name and widgets, another content: not taken from the cache."""
    folder = client.base / "models" / "checkpoints"
    shutil.copy(folder / "toy.safetensors", folder / "replaced.safetensors")
    graph["1"]["inputs"]["checkpoint"] = "replaced.safetensors"
    client.run(graph)
    not_a_number(folder, "replaced.safetensors", folder / "toy.safetensors")
    assert "NaN" in client.error(graph)["exception_message"]


def test_a_file_that_is_gone(client, graph):
    graph["1"]["inputs"]["checkpoint"] = "gone.safetensors"
    answer = client.queue(graph)
    (reason,) = answer["node_errors"]["1"]["errors"]
    assert reason["type"] == "value_not_in_list" and "gone.safetensors" in reason["details"]


def test_a_model_without_text_runs_the_same_graph(client, graph):
    graph["1"]["inputs"]["checkpoint"] = "toy_uncond.safetensors"
    assert client.video(client.run(graph)).stat().st_size > 0


def test_text_encoder_of_another_model(client, graph):
    graph["9"] = {**graph["1"], "inputs": {**graph["1"]["inputs"], "checkpoint": "toy_wide.safetensors"}}
    graph["2"]["inputs"]["clip"] = graph["3"]["inputs"]["clip"] = ["9", 1]
    error = client.error(graph)
    assert error["node_type"] == "KSampler"
    assert "text has width 48, this model was made for 32" in error["exception_message"]


# Sizes


def test_no_frames_at_all(client, graph):
    graph["4"]["inputs"]["frames"] = 0
    (reason,) = client.queue(graph)["node_errors"]["4"]["errors"]
    assert reason["type"] == "value_smaller_than_min" and "frames" in reason["details"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 100}, "width is 100, this model takes multiples of 8: choose 96 or 104."),
        ({"height": 68}, "height is 68, this model takes multiples of 8: choose 64 or 72."),
        ({"frames": 18}, "frames is 18, this model takes multiples of 4: choose 16 or 20."),
    ],
)
def test_sizes_the_model_cannot_take(client, graph, size, message):
    graph["4"]["inputs"] |= size
    error = client.error(graph)
    assert error["node_type"] == "WeftEmptyVideoLatent" and message in error["exception_message"]


@pytest.mark.parametrize("batch", [1, 16])
def test_an_image_latent(client, graph, batch):
    graph["4"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": batch}}
    error = client.error(graph)
    assert error["node_type"] == "KSampler"
    assert f"found {batch} latents of one frame: use Empty Video Latent (Weft)" in error["exception_message"]


def test_too_few_frames_for_the_vae(client, graph):
    graph["20"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    graph["21"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["1", 2]}}
    graph["6"]["inputs"]["samples"] = ["21", 0]
    error = client.error(graph)
    assert error["node_type"] == "VAEEncode" and "found 1 frames of 64 x 64: give" in error["exception_message"]


def test_steps_without_a_released_grid(client, graph):
    inputs = {"model": ["1", 0], "kind": "ddim", "steps": 27, "eta": 1.0, "denoise": 1.0}
    graph["10"] = {"class_type": "WeftReleaseSampler", "inputs": inputs}
    guider = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 3.0}
    graph["11"] = {"class_type": "CFGGuider", "inputs": guider}
    graph["12"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}}
    custom = {"noise": ["12", 0], "guider": ["11", 0], "sampler": ["10", 0], "sigmas": ["10", 1]}
    graph["5"] = {"class_type": "SamplerCustomAdvanced", "inputs": {**custom, "latent_image": ["4", 0]}}
    graph["6"]["inputs"]["samples"] = ["5", 0]
    error = client.error(graph)
    assert error["node_type"] == "WeftReleaseSampler" and "choose another number" in error["exception_message"]


# Disk and user


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit the files of a running process")
def test_no_room_for_the_video(client):
    """The server may write no file larger than its log and a little, which is less than the video needs."""
    import resource

    process, room = client.server.process.pid, client.server.log.stat().st_size + (1 << 17)
    graph = video_of_noise(client.base / "input" / "noise.png", room)
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        error = client.error(graph)
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
    assert error["node_type"] == "SaveVideo"
    assert "File too large" in error["exception_message"]
    written = client.video(client.run(graph))
    assert written.stat().st_size > room and len(read_video(written)[0]) == 2


def video_of_noise(picture, size):
    """A graph that saves a video of more than `size` bytes: noise takes more than a bit per pixel."""
    side = 2 * math.ceil(math.sqrt(8 * size) / 2)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(picture, compress_level=0)
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture.name}},
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 2}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": 8.0}},
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 0], "filename_prefix": "video/noise", "format": "auto", "codec": "auto"},
        },
    }


def test_interrupted_in_the_middle_and_queued_again(client, graph):
    """The run is so long that no machine has ended it before; a short one then shows whether traces are left."""
    graph["5"]["inputs"] |= {"steps": 4, "seed": 77}
    whole = read_video(client.video(client.run(graph)))[0]
    client.poke("/free", {"unload_models": True, "free_memory": True})  # else the result comes from the cache
    endless = copy.deepcopy(graph)
    endless["5"]["inputs"]["steps"] = 10_000
    socket = WebSocket(HOST, client.server.port, "/ws?clientId=interrupting")
    try:
        prompt = client.server.post("/prompt", {"prompt": endless, "client_id": "interrupting"})["prompt_id"]
        for message in socket.messages():
            if message["type"] == "progress" and message["data"]["value"] >= 2:
                client.poke("/interrupt")
                break
    finally:
        socket.close()
    status = client.wait(prompt)["status"]
    kinds = [kind for kind, _ in status["messages"]]
    assert "execution_interrupted" in kinds and "execution_success" not in kinds
    again = read_video(client.video(client.run(graph)))[0]
    assert np.array_equal(again, whole)
