"""The frozen autoencoder of a latent diffusion model, and the latents of a data set through it.

Shapes: B clips, T, H, W frames and latents, Z latent channels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from . import checkpoints
from .config import Data, FirstStage
from .data.captions import Split
from .data.clips import open_clips, stack_videos, to_pixels
from .settings import RecipeError, read_section, to_table

log = logging.getLogger(__name__)
ENCODE_BATCH = 16
COPY_NAME = "autoencoder.safetensors"


class Latents(NamedTuple):
    """Posterior moments (B, Z, T, H, W) of clips and the clips' captions."""

    mean: Tensor
    logvar: Tensor
    captions: list[str]

    def scale_and_shift(self) -> tuple[float, float]:
        """Numbers that give samples of the posterior zero mean and unit variance: z = scale * (a + shift)."""
        mean = self.mean.double()
        variance = mean.var(correction=0) + self.logvar.double().exp().mean()
        return float(variance.rsqrt()), float(-mean.mean())


def fit_preview(latents: Tensor, videos: Tensor) -> tuple[list[list[float]], list[float]]:
    """Least-squares map of diffusion latents (B, Z, t, h, w) to the colours, -1..1, of the pixels (B, 3, T, H, W) under
    them: factors (Z, 3) and bias (3,)."""
    frames, height, width = latents.shape[2:]
    colours = F.adaptive_avg_pool3d(videos, (frames, height, width)).movedim(1, -1).reshape(-1, 3)
    inputs = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    solution = torch.linalg.lstsq(F.pad(inputs, (0, 1), value=1.0), colours).solution
    return solution[:-1].tolist(), solution[-1].tolist()


def load_autoencoder(settings: FirstStage, folder: Path) -> VideoAutoencoder:
    """The frozen autoencoder; a copy is left in the run folder, so that the run needs nothing else afterwards."""
    copy = folder / COPY_NAME
    if copy.exists() and checkpoints.exist(folder):
        network = read_autoencoder(copy)
    else:
        network = _open(Path(settings.path), settings.weights)
        metadata = {"config": json.dumps(asdict(network.config))}
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, copy, metadata)
    return network.eval().requires_grad_(False)


def read_autoencoder(path: Path) -> VideoAutoencoder:
    """The autoencoder of a file that `load_autoencoder` left."""
    with safe_open(path, "pt") as file:
        config = read_section(VideoAutoencoderConfig, json.loads(file.metadata()["config"]), f"{path}: config.")
        state = {name: file.get_tensor(name) for name in file.keys()}
    network = VideoAutoencoder(config)
    network.load_state_dict(state)
    return network


def _open(path: Path, weights: str) -> VideoAutoencoder:
    if not path.exists():
        raise RecipeError(f"autoencoder.path: {path} does not exist; train the autoencoder or name its run folder")
    if path.is_file() and path.suffix != ".pt":
        from ..model_loaders.checkpoint import read

        network = read(path).component("vae").build()
        if not isinstance(network, VideoAutoencoder):
            raise RecipeError(f"autoencoder.path: {path} holds a {type(network).__name__}, expected a VideoAutoencoder")
        return network
    state = checkpoints.read(checkpoints.newest(path) if path.is_dir() else path)
    if "vae" not in state["configs"]:
        raise RecipeError(f"autoencoder.path: {path} is a run of {state['recipe']['task']}, expected an autoencoder's")
    network = VideoAutoencoder(read_section(VideoAutoencoderConfig, state["configs"]["vae"], f"{path}: network."))
    network.load_state_dict(state["ema"]["networks"]["vae"] if weights == "ema" else state["networks"]["vae"])
    return network


def encode_clips(
    network: VideoAutoencoder, data: Data, split: Split, count: int, cache: Path, device: torch.device, mixed: bool
) -> Latents:
    """Latents of the first `count` clips of a split, from the cache where the same were encoded before.

    The file's name is a hash of weights, data settings and precision.
    """
    key = _hash(network, [to_table(data), split, count, mixed])
    path = cache / f"{split}-{key}.safetensors"
    if path.exists():
        return _read_latents(path)
    clips = open_clips(data, split)
    network = network.to(device)
    means, logvars, captions = [], [], []
    for start in tqdm(range(0, count, ENCODE_BATCH), desc=f"encoding {split} clips", dynamic_ncols=True):
        indices = list(range(start, min(start + ENCODE_BATCH, count)))
        videos, texts = stack_videos(clips, indices)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            mean, logvar = network.moments(to_pixels(videos.to(device)))
        means.append(mean.half().cpu().contiguous())
        logvars.append(logvar.half().cpu().contiguous())
        captions += texts
    latents = Latents(torch.cat(means), torch.cat(logvars), captions)
    _write_latents(path, latents)
    return latents


def _hash(network: VideoAutoencoder, settings: list[object]) -> str:
    digest = hashlib.sha256(json.dumps([asdict(network.config), settings], sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_latents(path: Path, latents: Latents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {"mean": latents.mean, "logvar": latents.logvar}
    save_file(tensors, temporary, {"captions": json.dumps(latents.captions)})
    temporary.replace(path)


def _read_latents(path: Path) -> Latents:
    try:
        with safe_open(path, "pt") as file:
            return Latents(file.get_tensor("mean"), file.get_tensor("logvar"), json.loads(file.metadata()["captions"]))
    except SafetensorError as error:
        raise RecipeError(f"{path}: damaged latent cache ({error}); delete it") from error
