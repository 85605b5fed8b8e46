"""What the tests share: a ComfyUI, small random model files, a running server."""

import copy
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the root there, where our `nodes` hides ComfyUI's.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository, which is the pack."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui_folder() -> Path:
    """The ComfyUI to test on: `dev.py test` names it, else the one it has downloaded."""
    from weft.tools.comfyui import NEWEST

    folder = Path(os.environ.get("WEFT_COMFYUI") or ROOT / ".venv" / "comfyui" / NEWEST.version)
    assert (folder / "main.py").is_file(), f"no ComfyUI in {folder}: run `python dev.py test`, which fetches it"
    return folder


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models of random weights: text to video, the same with wider text, unconditional, masked."""
    import torch

    from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
    from weft.kernels.networks.lvdm import (
        LatentVideoUNet,
        LatentVideoUNetConfig,
        TextToVideoUNet,
        TextToVideoUNetConfig,
    )
    from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.checkpoint import LatentSpec

    folder = tmp_path_factory.mktemp("toy_models")
    torch.manual_seed(0)
    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (1, 2)}
    video = LatentVideoUNetConfig(**small, num_heads=2, temporal_length=4)
    words = CaptionEncoderConfig(("a", "red", "circle", "blue", "square"), 32, 1, 2, 16)

    def save(name: str, schedule: NoiseSchedule, **networks: torch.nn.Module) -> None:
        for network in networks.values():
            _randomise(network)
        save_bundle(
            folder / name,
            {"vae": VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8)), **networks},
            system="lvdm",
            latent=LatentSpec(4, 8, 4, 0.5, 0.1),
            schedule=schedule,
            metadata={"dataset_seed": 0},
        )

    for name, width in (("toy.safetensors", 32), ("toy_wide.safetensors", 48)):
        network = TextToVideoUNet(TextToVideoUNetConfig(**small, num_heads=2, temporal_length=4, context_width=width))
        text = CaptionEncoder(replace(words, width=width))
        save(name, NoiseSchedule(0.00085, 0.012), diffusion_model=network, text_encoder=text)
    # A schedule so short that the whole of it can be walked.
    save("toy_uncond.safetensors", NoiseSchedule(0.01, 0.4, 20), diffusion_model=LatentVideoUNet(video))
    masked = LatentVideoUNet(replace(video, in_channels=5, noise_levels=8))
    save("toy_masked.safetensors", NoiseSchedule(), diffusion_model=masked)
    between = LatentVideoUNet(replace(video, in_channels=5, noise_levels=8, temporal_length=5))
    save("toy_between.safetensors", NoiseSchedule(), diffusion_model=between)
    return folder


def _randomise(network) -> None:
    """Give every parameter a value of its own: layers that start at zero would hide what comes before them."""
    import torch

    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(scope="session")
def server_base(tmp_path_factory: pytest.TempPathFactory, toy_models: Path) -> Path:
    """The user folders of the test server: small models among its checkpoints, small stand-ins of downloads."""
    base = tmp_path_factory.mktemp("server")
    shutil.copytree(toy_models, base / "models" / "checkpoints")
    shutil.copytree(ROOT / "tests" / "data" / "stand_ins", base / "custom_nodes" / "stand_ins")
    return base


@pytest.fixture(scope="session")
def server(root: Path, comfyui_folder: Path, server_base: Path) -> Iterator:
    """A ComfyUI with the pack, started once and asked over HTTP."""
    from weft.tools.comfyui import ComfyUI
    from weft.tools.server import running

    comfyui = ComfyUI(comfyui_folder.resolve(), Path(sys.executable))
    with running(comfyui, server_base, root, log=server_base / "log") as server:
        yield server


@dataclass(frozen=True)
class Client:
    """Somebody who queues graphs on the test server and reads what became of them."""

    server: object
    base: Path

    def poke(self, path: str, content: dict | None = None) -> None:
        """Post to an address that answers nothing."""
        from weft.tools.server import DIRECT

        body = json.dumps(content or {}).encode()
        DIRECT.open(urllib.request.Request(self.server.url + path, body), timeout=60).close()

    def queue(self, graph: dict) -> dict:
        """Post a graph; the answer has `prompt_id`, or `error` and `node_errors`."""
        return self.server.post("/prompt", {"prompt": graph})

    def wait(self, prompt: str, seconds: float = 300) -> dict:
        """The history of a queued graph, once it has ended: `status` with its messages, and `outputs`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if entry := json.loads(self.server.get(f"/history/{prompt}")).get(prompt):
                return entry
            assert self.server.process.poll() is None, f"the server ended:\n{self.server.last_words()}"
            time.sleep(0.1)
        raise AssertionError(f"not done in {seconds} s:\n{self.server.last_words()}")

    def run(self, graph: dict) -> dict:
        """Queue a graph that must succeed; its outputs by node."""
        answer = self.queue(graph)
        assert answer.get("prompt_id") and not answer.get("node_errors"), answer
        entry = self.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        return entry["outputs"]

    def error(self, graph: dict) -> dict:
        """Queue a graph that must fail while it runs; what ComfyUI says of it: node, exception, traceback."""
        answer = self.queue(graph)
        assert "prompt_id" in answer, answer
        entry = self.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "error"
        return next(data for kind, data in entry["status"]["messages"] if kind == "execution_error")

    def video(self, outputs: dict) -> Path:
        """The file of the first video among a run's outputs."""
        from weft.tools.demo import saved_video

        found = saved_video(outputs)
        return self.base / "output" / found["subfolder"] / found["filename"]


@pytest.fixture(scope="session")
def client(server, server_base: Path) -> Client:
    """Queue graphs by this."""
    return Client(server, server_base)


@pytest.fixture(scope="session")
def client_of() -> type[Client]:
    """Makes the client of another server and its folders."""
    return Client


@pytest.fixture
def graph() -> dict:
    """Text to video with the small model, in API format: 16 frames of 64 x 64 in two steps; a copy for every test."""
    return copy.deepcopy(TEXT_TO_VIDEO)


TEXT_TO_VIDEO = {
    "1": {
        "class_type": "WeftLoadCheckpoint",
        "inputs": {"checkpoint": "toy.safetensors", "weights": "training", "scaling": "auto", "dtype": "default"},
        "_meta": {"title": "Load Checkpoint (Weft)"},
    },
    "2": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "a red circle", "clip": ["1", 1]},
        "_meta": {"title": "Prompt"},
    },
    "3": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "", "clip": ["1", 1]},
        "_meta": {"title": "Negative prompt"},
    },
    "4": {
        "class_type": "WeftEmptyVideoLatent",
        "inputs": {"model": ["1", 0], "width": 64, "height": 64, "frames": 16, "batch_size": 1},
        "_meta": {"title": "Empty Video Latent (Weft)"},
    },
    "5": {
        "class_type": "KSampler",
        "inputs": {
            **{"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
            **{"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        },
        "_meta": {"title": "KSampler"},
    },
    "6": {
        "class_type": "VAEDecode",
        "inputs": {"samples": ["5", 0], "vae": ["1", 2]},
        "_meta": {"title": "VAE Decode"},
    },
    "7": {
        "class_type": "CreateVideo",
        "inputs": {"images": ["6", 0], "fps": 8.0},
        "_meta": {"title": "Create Video"},
    },
    "8": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["7", 0], "filename_prefix": "video/toy", "format": "auto", "codec": "auto"},
        "_meta": {"title": "Save Video"},
    },
}
