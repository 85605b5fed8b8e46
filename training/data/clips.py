"""Opening the data set that a recipe names.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..sections import Data, FolderData, ShardData
from .captions import Split
from .folder import FolderClips
from .moving_shapes import MovingShapes
from .shards import ShardClips
from .video_clips import VideoClips

LARGEST_POOL = 16
T = TypeVar("T")


class Clips(Protocol):
    """A data set of (frames uint8 (T, H, W, 3), caption)."""

    def __len__(self) -> int: ...

    def load(self, index: int, epoch: int = 0) -> tuple[np.ndarray, str]:
        """A clip as an epoch sees it."""
        ...

    def texts(self, count: int) -> list[str]:
        """The captions of the first `count` clips."""
        ...

    def fingerprint(self, count: int) -> list[object]:
        """What the first `count` clips depend on beside the settings; plain values."""
        ...


def open_clips(data: Data, split: Split) -> Clips:
    """The data set that a recipe's data section describes."""
    if isinstance(data, ShardData):
        return ShardClips(data, split)
    return FolderClips(data, split) if isinstance(data, FolderData) else MovingShapes(data, split)


def streams_of(clips: Clips) -> ShardClips | None:
    """Archives that are read in training itself, and best from end to end."""
    return clips if isinstance(clips, ShardClips) else None


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in -1..1."""
    # Contiguous: on a CPU, group norm backward is forty times slower in channels-last memory.
    return frames.movedim(-1, 1).contiguous().to(torch.float32).div(127.5).sub(1)


def stack_videos(clips: Clips, indices: list[int], epochs: list[int] | None = None) -> tuple[Tensor, list[str]]:
    """Clips (B, T, H, W, 3) uint8, each as its epoch (by default the first) sees it, and their captions.

    Raises InputError when one cannot be decoded.
    """
    videos, captions = zip(*_each(clips, clips.load, indices, epochs), strict=True)
    return torch.from_numpy(np.stack(videos)), list(captions)


def stack_readable(clips: Clips, indices: list[int], epochs: list[int]) -> tuple[Tensor, list[int]]:
    """Clips (B, T, H, W, 3) uint8 as their epochs see them, and their numbers; where they differ in size, as large as
    the first one.

    Those that cannot be decoded are replaced by the next where the data set was not checked before.
    """
    indices = alike(indices, borders_of(clips))
    if not isinstance(clips, VideoClips):
        return stack_videos(clips, indices, epochs)[0], indices
    videos, numbers = zip(*_each(clips, clips.load_readable, indices, epochs), strict=True)
    return torch.from_numpy(np.stack(videos)), list(numbers)


def borders_of(clips: Clips) -> list[int]:
    """Numbers of the clips from which on frames have another size, 0 and the number of clips included."""
    return clips.borders() if isinstance(clips, VideoClips) else [0, len(clips)]


def alike(numbers: list[int], borders: list[int]) -> list[int]:
    """Numbers of a batch whose clips are all as large as the first one's; others become ones of these.

    Clips are shown about as often as without that: a size comes first as often as it has clips.
    """
    if len(borders) <= 2:
        return numbers
    place = bisect.bisect_right(borders, numbers[0])
    first, end = borders[place - 1], borders[place]
    return [number if first <= number < end else first + number % (end - first) for number in numbers]


def _each(
    clips: Clips, load: Callable[[int, int], tuple[np.ndarray, T]], indices: list[int], epochs: list[int] | None
) -> list[tuple[np.ndarray, T]]:
    epochs = [0] * len(indices) if epochs is None else epochs
    # Decoders leave the interpreter to others meanwhile; what is drawn by it would only take turns.
    if isinstance(clips, VideoClips) and len(indices) > 1:
        return list(_decoders().map(load, indices, epochs))
    return [load(*each) for each in zip(indices, epochs, strict=True)]


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Threads that decode, shared by all data sets."""
    return ThreadPoolExecutor(max(1, min(LARGEST_POOL, os.cpu_count() or 1)), "decoder")
