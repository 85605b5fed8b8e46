"""Opening the data set that a recipe names.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..sections import Data, FolderData
from .captions import Split
from .folder import FolderClips
from .moving_shapes import MovingShapes


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
    return FolderClips(data, split) if isinstance(data, FolderData) else MovingShapes(data, split)


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in -1..1."""
    # Contiguous: on a CPU, group norm backward is forty times slower in channels-last memory.
    return frames.movedim(-1, 1).contiguous().to(torch.float32).div(127.5).sub(1)


def stack_videos(clips: Clips, indices: list[int], epochs: list[int] | None = None) -> tuple[Tensor, list[str]]:
    """Clips (B, T, H, W, 3) uint8, each as its epoch (by default the first) sees it, and their captions."""
    epochs = [0] * len(indices) if epochs is None else epochs
    videos, captions = zip(*(clips.load(*each) for each in zip(indices, epochs, strict=True)), strict=True)
    return torch.from_numpy(np.stack(videos)), list(captions)
