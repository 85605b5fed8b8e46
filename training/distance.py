"""The Frechet distance of videos to real clips, in the features of a network that says what clips show.

Shapes: N videos, T frames, H, W pixels, D features.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels.analysis.frechet import frechet_distance
from ..kernels.networks.video_features import VideoFeatures
from ..model_loaders.bundle import FEATURES
from ..model_loaders.checkpoint import read
from .data.captions import parse_caption
from .data.clips import to_pixels
from .data.moving_shapes import MovingShapesConfig, animate, render
from .data.sources import VideoFile, find_sources
from .data.video_files import read_video, write_video
from .settings import InputError

NETWORK = Path(__file__).parent / "data" / "video_features.safetensors"
"""Where what recipes/demo_features.toml makes is exported to."""
REAL_CLIPS = 1024
"""Clips that are drawn at least, each caption equally often."""
FEW = 256
"""Videos below which most of a distance can come of their number."""
BATCH = 32
FPS = 8
log = logging.getLogger(__name__)


class FrechetMeter:
    """Compares videos with clips drawn from their captions, or with those of a second folder."""

    def __init__(self, network: Path = NETWORK, reference: Path | None = None) -> None:
        """Raises CheckpointError for an unusable file, InputError for a reference without videos."""
        built = read(network).component(FEATURES).build().eval().requires_grad_(False)
        assert isinstance(built, VideoFeatures)
        self.network = built
        self.name = f"{network.name} {hashlib.sha256(network.read_bytes()).hexdigest()[:12]}"
        self.reference = _videos(reference) if reference else None
        self._drawn: tuple[object, Tensor] | None = None
        """What clips were drawn for, and their features: sets of videos often have the same captions."""

    def measure(self, folder: Path, captions: Mapping[str, str]) -> dict[str, float | str]:
        """The distance of captioned videos: `frechet`, and to how many clips.

        Beside clips of the captions also `frechet_real`, the distance of as many real clips: a perfect model's.
        Raises InputError for fewer than two videos, those of other sizes, captions outside the grammar.
        """
        names = sorted(captions)
        found, frames = self._read([folder / name for name in names])
        if self.reference is not None:
            reference, length = self._read(self.reference)
            if length != frames:
                raise InputError(f"{self.reference[0]}: {length} frames, the videos of {folder} have {frames}")
            return self._table(found, reference)
        texts = [captions[name] for name in names]
        real, reference = self._real(texts, frames).tensor_split([len(texts)])
        return {**self._table(found, reference), "frechet_real": _distance(real, reference)}

    def _table(self, found: Tensor, reference: Tensor) -> dict[str, float | str]:
        fewest = min(len(found), len(reference))
        if fewest < FEW:
            log.warning(
                "Frechet distance of %d videos: below %d it is too large and depends on their number; compare it with "
                "that of as many others only",
                fewest,
                FEW,
            )
        return {
            "frechet": _distance(found, reference),
            "frechet_clips": len(reference),
            "frechet_network": self.name,
        }

    def _real(self, texts: list[str], frames: int) -> Tensor:
        """Features of clips drawn from captions, in rounds of one of each."""
        if self._drawn is not None and self._drawn[0] == (texts, frames):
            return self._drawn[1]
        rounds = -(-REAL_CLIPS // len(texts))
        drawn = tqdm(
            real_clips(texts, range(rounds + 1), frames, self.network.config.size),
            desc="drawing clips",
            total=(rounds + 1) * len(texts),
            dynamic_ncols=True,
        )
        features = self._features(drawn)
        self._drawn = (texts, frames), features
        return features

    def _read(self, paths: list[Path]) -> tuple[Tensor, int]:
        """Features (N, D) of videos, and T, which is that of all of them."""
        if len(paths) < 2:
            raise InputError(f"{paths[0]}: found one video, a Frechet distance takes at least 2, better {FEW}")
        frames, fewest = len(read_video(paths[0])[0]), self.network.config.frames
        if frames < fewest:
            raise InputError(f"{paths[0]}: {frames} frames, {self.name} takes at least {fewest}")
        return self._features(self._video(path, frames, paths[0]) for path in paths), frames

    def _video(self, path: Path, frames: int, first: Path) -> np.ndarray:
        video, size = read_video(path)[0], self.network.config.size
        length, height, width, _ = video.shape
        if (height, width) != (size, size):
            raise InputError(f"{path}: {width} x {height} pixels, {self.name} takes {size} x {size}")
        if length != frames:
            raise InputError(f"{path}: {length} frames, {first} has {frames}; expected as many in all videos")
        return video

    @torch.no_grad()
    def _features(self, videos: Iterable[np.ndarray]) -> Tensor:
        """Features (N, D) of uint8 frames (T, H, W, 3)."""
        videos = iter(videos)
        parts = []
        while batch := list(itertools.islice(videos, BATCH)):
            parts.append(self.network.features(to_pixels(torch.from_numpy(np.stack(batch)))))
        return torch.cat(parts)


def _distance(first: Tensor, second: Tensor) -> float:
    return float(f"{frechet_distance(first, second):.5g}")


def real_clips(captions: list[str], rounds: range, frames: int, size: int) -> Iterator[np.ndarray]:
    """In every round a clip of each caption, uint8 (T, H, W, 3), as a video file gives it back; the same every time.

    Raises InputError for captions outside the grammar.
    """
    config = MovingShapesConfig(size=size, frames=frames)
    specs = [parse_caption(text) for text in captions]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number, (index, spec) in itertools.product(rounds, enumerate(specs)):
            clip = animate(spec, np.random.default_rng((number, index)), config)
            # As the videos were: no distance should come of compression.
            write_video(path, render(clip), FPS)
            yield read_video(path)[0]


def _videos(folder: Path) -> list[Path]:
    paths = [source.path for source in find_sources(folder) if isinstance(source, VideoFile)]
    if not paths:
        raise InputError(f"{folder}: no videos to compare with")
    return paths
