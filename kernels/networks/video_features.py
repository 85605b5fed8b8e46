"""A small video network that says what a clip shows; sets of clips are compared in its pooled features.

Convolutions over space and over time in turn, as in R(2+1)D (arXiv 1711.11248).
Shapes: B clips, T frames, C channels, H, W pixels, D features, L labels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations


@dataclass(frozen=True)
class VideoFeaturesConfig:
    """Numbers of the network.

    Attributes:
        channels: widths of the first convolution and of each block; the last one is D.
        labels: names of what a clip may show, L of them.
        frames, size: of the clips that it is trained on.
    """

    channels: tuple[int, ...]
    labels: tuple[str, ...]
    frames: int = 8
    size: int = 64


class SpaceTimeBlock(nn.Module):
    """Convolution over space, which halves height and width, and over time, which takes a frame from either end."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.space = operations.Conv3d(in_channels, out_channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), **layer)
        self.time = operations.Conv3d(out_channels, out_channels, (3, 1, 1), **layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T-2, H/2, W/2)."""
        return F.relu(self.time(F.relu(self.space(x))))


class VideoFeatures(nn.Module):
    """A convolution of single frames, blocks, the mean over time and space, and one linear layer to labels."""

    def __init__(
        self,
        config: VideoFeaturesConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.config = config
        widths = config.channels
        self.stem = operations.Conv3d(3, widths[0], (1, 5, 5), (1, 2, 2), (0, 2, 2), **layer)
        self.blocks = nn.Sequential(*(SpaceTimeBlock(*pair, **build) for pair in zip(widths, widths[1:], strict=False)))
        self.head = operations.Linear(widths[-1], len(config.labels), **layer)

    @property
    def fewest_frames(self) -> int:
        """Frames from which on a clip has features."""
        return 2 * len(self.blocks) + 1

    def features(self, video: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) in -1..1 -> pooled features (B, D).

        Speeds are ways per clip: clips of twice as many frames as in training are looked at as two interlaced ones.

        Raises:
            ValueError: fewer frames than the convolutions over time take.
        """
        frames = video.shape[2]
        if frames < self.fewest_frames:
            raise ValueError(f"A clip of {frames} frames is too short: give at least {self.fewest_frames}.")
        step = max(1, frames // self.config.frames)
        pooled = [self._pooled(video[:, :, first::step]) for first in range(step)]
        return torch.stack(pooled).mean(dim=0)

    def forward(self, video: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) in -1..1 -> logits of the labels (B, L)."""
        return self.head(self.features(video))

    def _pooled(self, video: Tensor) -> Tensor:
        return self.blocks(F.relu(self.stem(video))).mean(dim=(2, 3, 4))
