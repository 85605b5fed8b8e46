"""The latents of a data set: encoded once, kept on disk, scaled to unit variance.

Shapes: B clips, T, H, W frames and latents, Z latent channels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .config import Data
from .data.captions import Split
from .data.clips import open_clips, stack_videos, to_pixels
from .first_stage import FrozenAutoencoder
from .settings import RecipeError, to_table

ENCODE_BATCH = 16


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
    rounded = [[round(value, 4) for value in row] for row in solution.tolist()]
    return rounded[:-1], rounded[-1]


def encode_clips(
    network: FrozenAutoencoder, data: Data, split: Split, count: int, cache: Path, device: torch.device, mixed: bool
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


def _hash(network: FrozenAutoencoder, settings: list[object]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
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
