"""The shorter list, which also runs on the oldest supported ComfyUI: it loads, makes a video, explains errors."""

import json
from pathlib import Path

from weft.training.data.video_files import read_video

NODES = set(json.loads((Path(__file__).resolve().parents[1] / "data" / "schema.json").read_text()))


def test_every_node_is_there(server):
    listed = json.loads(server.get("/object_info"))
    assert {name for name in listed if name.startswith("Weft")} == NODES
    assert {listed[name]["python_module"] for name in NODES} == {"custom_nodes.ComfyUI-Weft"}


def test_small_models_are_listed(server):
    listed = json.loads(server.get("/object_info/WeftLoadCheckpoint"))["WeftLoadCheckpoint"]
    options = listed["input"]["required"]["checkpoint"][1]["options"]
    assert "toy.safetensors" in options and len(options) == len(set(options))


def test_a_prompt_becomes_a_video(client, graph):
    frames, rate = read_video(client.video(client.run(graph)))
    assert frames.shape == (16, 64, 64, 3) and rate == 8
    assert frames.std() > 1


def test_released_sampler(client, graph):
    """Release Sampler and SamplerCustomAdvanced in place of KSampler."""
    del graph["5"]
    graph["10"] = _node("WeftReleaseSampler", model=["1", 0], kind="ddim", steps=4, eta=1.0, denoise=1.0)
    graph["11"] = _node("RandomNoise", noise_seed=3)
    graph["12"] = _node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=3.0)
    links = {"noise": ["11", 0], "guider": ["12", 0], "sampler": ["10", 0], "sigmas": ["10", 1]}
    graph["13"] = _node("SamplerCustomAdvanced", **links, latent_image=["4", 0])
    graph["6"]["inputs"]["samples"] = ["13", 0]
    assert read_video(client.video(client.run(graph)))[0].shape == (16, 64, 64, 3)


def _node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def test_pixels_go_in_and_come_out(client, graph):
    """A video to latents and back, by the 3D autoencoder and by an image VAE frame by frame."""
    del graph["2"], graph["3"], graph["4"], graph["5"]
    graph["20"] = _node("EmptyImage", width=64, height=64, batch_size=16, color=0x3366CC)
    graph["21"] = _node("VAEEncode", pixels=["20", 0], vae=["1", 2])
    graph["6"]["inputs"]["samples"] = ["21", 0]
    graph["22"] = _node("VAELoader", vae_name="pixel_space")
    graph["23"] = _node("WeftFramewiseVAE", vae=["22", 0])
    graph["24"] = _node("VAEEncode", pixels=["20", 0], vae=["23", 0])
    graph["25"] = _node("VAEDecode", samples=["24", 0], vae=["23", 0])
    graph["26"] = _node("CreateVideo", images=["25", 0], fps=12.0)
    graph["27"] = _node("SaveVideo", video=["26", 0], filename_prefix="video/exact", format="auto", codec="auto")
    outputs = client.run(graph)
    assert read_video(client.video({"8": outputs["8"]}))[0].shape == (16, 64, 64, 3)
    frames, rate = read_video(client.video({"27": outputs["27"]}))
    assert frames.shape == (16, 64, 64, 3) and rate == 12
    # h264 rounds colours
    assert abs(frames.astype(int) - [0x33, 0x66, 0xCC]).max() <= 4


def test_an_image_latent_is_an_error_in_words(client, graph):
    graph["4"] = _node("EmptyLatentImage", width=64, height=64, batch_size=4)
    error = client.error(graph)
    assert error["node_type"] == "KSampler"
    assert "toy.safetensors makes videos and needs a latent" in error["exception_message"]


def test_sizes_out_of_range_are_an_error_in_words(client, graph):
    graph["4"]["inputs"]["frames"] = 15
    error = client.error(graph)
    assert error["node_type"] == "WeftEmptyVideoLatent"
    assert "frames is 15, this model takes multiples of 4: choose 12 or 16." in error["exception_message"]


def test_the_next_prompt_succeeds(client, graph):
    graph["5"]["inputs"]["seed"] = 2
    client.run(graph)
