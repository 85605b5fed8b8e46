"""The latents of a data set: encoded once, kept on disk in shards, scaled to unit variance.

Shapes: B clips, T, H, W frames and latents, Z latent channels.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from . import distributed
from .data.captions import Split
from .data.clips import Clips, borders_of, stack_videos, to_pixels
from .first_stage import FrozenAutoencoder
from .sections import Data
from .settings import InputError, RecipeError, to_table

ENCODE_BATCH = 16
SHARD_CLIPS = 2048
"""Clips of a file, a multiple of ENCODE_BATCH: what an interrupt can lose."""
log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """Posterior moments (B, Z, T, H, W), the clips' numbers (B,) in the data set, their captions and what else is
    known of their frames (B, T, D)."""

    mean: Tensor
    logvar: Tensor
    indices: Tensor
    captions: list[str]
    features: Tensor | None = None


class FrameFeatures(Protocol):
    """Features of single frames that are kept beside the latents."""

    name: str
    """Another one means other features."""

    def __call__(self, videos: Tensor) -> Tensor:
        """Videos (B, T, H, W, 3) uint8 -> (B, T, D)."""
        ...


class Latents:
    """Posterior moments of clips; those read from disk stay there until they are used."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.captions = [caption for shard in shards for caption in shard.captions]
        self.indices = [index for shard in shards for index in shard.indices.tolist()]
        """Numbers of the clips in their data set; some are missing where a clip could not be decoded."""
        self._ends = list(itertools.accumulate(len(shard.mean) for shard in shards))

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, Z, T, H, W) of the latents with these numbers, at least one."""
        means, logvars = zip(*(self._one(number) for number in numbers), strict=True)
        return torch.stack(means), torch.stack(logvars)

    def borders(self) -> list[int]:
        """Numbers from which on latents have another size, 0 and the number of latents included."""
        ends = [
            end
            for end, shard, after in zip(self._ends, self.shards, self.shards[1:], strict=False)
            if shard.mean.shape[1:] != after.mean.shape[1:]
        ]
        return [0, *ends, len(self)]

    def features(self, numbers: list[int]) -> Tensor:
        """Features of their frames (B, T, D), for latents that were encoded with them."""
        rows = []
        for shard, place in map(self._place, numbers):
            assert shard.features is not None
            rows.append(shard.features[place])
        return torch.stack(rows)

    def scale_and_shift(self) -> tuple[float, float]:
        """Numbers that give samples of the posterior zero mean and unit variance: z = scale * (a + shift)."""
        values = sum(shard.mean.numel() for shard in self.shards)
        total, squares, noise = torch.zeros(3, dtype=torch.float64)
        # One batch at a time: the latents can be larger than memory.
        for shard in self.shards:
            for mean, logvar in zip(shard.mean.split(ENCODE_BATCH), shard.logvar.split(ENCODE_BATCH), strict=True):
                mean = mean.double()
                total, squares = total + mean.sum(), squares + mean.square().sum()
                noise = noise + logvar.double().exp().sum()
        center = total / values
        variance = squares / values - center.square() + noise / values
        return float(variance.rsqrt()), float(-center)

    def _one(self, number: int) -> tuple[Tensor, Tensor]:
        shard, place = self._place(number)
        return shard.mean[place], shard.logvar[place]

    def _place(self, number: int) -> tuple[Shard, int]:
        """The shard of a clip and its place there."""
        index = bisect.bisect_right(self._ends, number)
        return self.shards[index], number - (self._ends[index - 1] if index else 0)


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
    network: FrozenAutoencoder,
    data: Data,
    clips: Clips,
    split: Split,
    count: int,
    cache: Path,
    device: torch.device,
    mixed: bool,
    features: FrameFeatures | None = None,
) -> Latents:
    """Latents of the first `count` clips of a split, from the cache where the same were encoded before.

    A folder of the cache is named by a hash of weights, data settings, files and precision. It has one file per
    SHARD_CLIPS clips, each written as soon as it is encoded. Clips that cannot be decoded are left out and counted.
    """
    named = [] if features is None else [features.name]
    key = hash_of(network, [to_table(data), clips.fingerprint(count), split, count, mixed, *named])
    folder = cache / f"{split}-{key}"
    network = network.to(device)
    paths: list[Path] = []
    quiet = not distributed.is_first()
    with tqdm(total=count, desc=f"encoding {split} clips", dynamic_ncols=True, disable=quiet) as bar:
        for number, indices in enumerate(_shard_ranges(clips, count)):
            path = folder / f"{number:05d}.safetensors"
            paths.append(path)
            # Processes that share a run take turns.
            if not path.exists() and number % distributed.size() == distributed.rank():
                _write_shard(path, _encode_shard(network, clips, indices, device, mixed, bar, features))
            bar.update(indices.stop - bar.n)
    distributed.wait()
    latents = Latents([_read_shard(path) for path in paths])
    if len(latents) < count:
        log.warning("%d of %d %s clips could not be decoded and are left out", count - len(latents), count, split)
    return latents


def _shard_ranges(clips: Clips, count: int) -> list[range]:
    """Numbers of the clips of each shard, which all have one size."""
    borders = [min(border, count) for border in borders_of(clips)]
    ranges = []
    for first, end in itertools.pairwise(borders):
        ranges += [range(start, min(start + SHARD_CLIPS, end)) for start in range(first, end, SHARD_CLIPS)]
    return ranges


def _encode_shard(
    network: FrozenAutoencoder,
    clips: Clips,
    indices: range,
    device: torch.device,
    mixed: bool,
    bar: tqdm,
    features: FrameFeatures | None,
) -> Shard:
    means: list[Tensor] = []
    logvars: list[Tensor] = []
    used: list[int] = []
    captions: list[str] = []
    rows: list[Tensor] = []
    for start in range(0, len(indices), ENCODE_BATCH):
        batch = list(indices[start : start + ENCODE_BATCH])
        readable, videos, texts = _load(clips, batch)
        if readable:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                mean, logvar = network.moments(to_pixels(videos.to(device)))
            means.append(mean.half().cpu().contiguous())
            logvars.append(logvar.half().cpu().contiguous())
            used, captions = used + readable, captions + texts
            if features is not None:
                rows.append(features(videos).half().cpu())
        bar.update(len(batch))
    if not used:
        raise InputError(f"none of the clips {indices.start} to {indices.stop - 1} could be decoded")
    kept = torch.cat(rows) if rows else None
    return Shard(torch.cat(means), torch.cat(logvars), torch.tensor(used), captions, kept)


def _load(clips: Clips, batch: list[int]) -> tuple[list[int], Tensor, list[str]]:
    """Those clips of a batch that can be decoded: numbers, videos (B, T, H, W, 3) uint8, captions."""
    try:
        return batch, *stack_videos(clips, batch)
    except InputError:
        loaded: list[tuple[int, Tensor, str]] = []
        for index in batch:
            try:
                video, texts = stack_videos(clips, [index])
                loaded.append((index, video, texts[0]))
            except InputError as error:
                log.warning("%s", error)
        videos = torch.cat([video for _, video, _ in loaded]) if loaded else torch.empty(0)
        return [index for index, _, _ in loaded], videos, [text for _, _, text in loaded]


def hash_of(network: nn.Module, settings: list[object]) -> str:
    """A name that another network, or other settings, would not have."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_shard(path: Path, shard: Shard) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {"mean": shard.mean, "logvar": shard.logvar, "indices": shard.indices}
    if shard.features is not None:
        tensors["features"] = shard.features
    save_file(tensors, temporary, {"captions": json.dumps(shard.captions)})
    temporary.replace(path)


def _read_shard(path: Path) -> Shard:
    try:
        with safe_open(path, "pt") as file:  # tensors are views of the file in memory, read when they are used
            mean, logvar, indices = (file.get_tensor(name) for name in ("mean", "logvar", "indices"))
            features = file.get_tensor("features") if "features" in file.keys() else None
            return Shard(mean, logvar, indices, json.loads(file.metadata()["captions"]), features)
    except SafetensorError as error:
        raise RecipeError(f"{path}: damaged latent cache ({error}); delete it") from error
