"""Opening the data set that a recipe names.

Shapes: B clips, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import Data, FolderData
from .captions import Split
from .folder import FolderClips
from .moving_shapes import MovingShapes


class Clips(Protocol):
    """A data set of (frames uint8 (T, H, W, 3), caption)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]: ...


def open_clips(data: Data, split: Split) -> Clips:
    """The data set that a recipe's data section describes."""
    return FolderClips(data, split) if isinstance(data, FolderData) else MovingShapes(data, split)


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in -1..1."""
    # Contiguous: on a CPU, group norm backward is forty times slower in channels-last memory.
    return frames.movedim(-1, 1).contiguous().to(torch.float32).div(127.5).sub(1)


def stack_videos(clips: Clips, indices: list[int]) -> tuple[Tensor, list[str]]:
    """Clips (B, T, H, W, 3) uint8 and their captions."""
    videos, captions = zip(*(clips[index] for index in indices), strict=True)
    return torch.from_numpy(np.stack(videos)), list(captions)
