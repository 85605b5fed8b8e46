"""I3D, the network of FVD and KVD: Inception on videos (arXiv 1705.07750), in the form of the released video metrics.

Shapes: B clips, T frames, C channels, H, W pixels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224
"""Height and width of the frames it looks at, in pixels."""
FEWEST_FRAMES = 9
"""The last pool spans two frames of an eighth of the rate."""
EPS = 1e-5
"""Of batch norm; other ports of this network use 1e-3, and give other distances."""


@dataclass(frozen=True)
class Inception3DConfig:
    """Numbers of the network.

    Attributes:
        stem: channels of the three convolutions before the first block.
        blocks: channels of each block's branches: 1; 1 and 3; 1 and 3; behind its pool. By stages, a pool before each.
        classes: K; Kinetics has 400.
    """

    stem: tuple[int, int, int] = (64, 64, 192)
    blocks: tuple[tuple[tuple[int, int, int, int, int, int], ...], ...] = (
        ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    )
    classes: int = 400


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU; padded as TensorFlow's "same" is, which depends on the input."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm3d(out_channels, EPS, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T', H', W'), each side over the stride, rounded up."""
        padded = _pad(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(self.conv(padded)))


class Block(nn.Module):
    """Four branches whose channels stand one behind the other."""

    def __init__(self, in_channels: int, widths: Sequence[int], *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        single, before_a, a, before_b, b, pooled = widths
        self.single = Unit(in_channels, single, dtype=dtype)
        self.first = nn.Sequential(Unit(in_channels, before_a, dtype=dtype), Unit(before_a, a, 3, dtype=dtype))
        self.second = nn.Sequential(Unit(in_channels, before_b, dtype=dtype), Unit(before_b, b, 3, dtype=dtype))
        self.pooled = Unit(in_channels, pooled, dtype=dtype)
        self.out_channels = single + a + b + pooled

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T, H, W)."""
        around = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.single(x), self.first(x), self.second(x), self.pooled(around)], dim=1)


class Inception3D(nn.Module):
    """Stem, nine blocks in three stages, mean over what is left of space and time, one linear layer."""

    def __init__(self, config: Inception3DConfig | None = None, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        config = config or Inception3DConfig()
        self.config = config
        first, second, third = config.stem
        self.stem = nn.ModuleList(
            [Unit(3, first, 7, 2, dtype=dtype), Unit(first, second, dtype=dtype), Unit(second, third, 3, dtype=dtype)]
        )
        self.stages = nn.ModuleList()
        channels = third
        for stage in config.blocks:
            blocks = []
            for widths in stage:
                blocks.append(Block(channels, widths, dtype=dtype))
                channels = blocks[-1].out_channels
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Conv3d(channels, config.classes, 1, dtype=dtype)

    def forward(self, video: Tensor) -> Tensor:
        """Pixels (B, 3, T, 224, 224) in -1..1 -> logits of the classes (B, K), the mean over time: FVD's features.

        Raises:
            ValueError: fewer than 9 frames, or frames of another size.
        """
        frames, height, width = video.shape[2:]
        if frames < FEWEST_FRAMES or (height, width) != (SIZE, SIZE):
            raise ValueError(
                f"A clip of {frames} frames of {width} x {height}: I3D takes at least {FEWEST_FRAMES}, {SIZE} x {SIZE}."
            )
        x = _pool(self.stem[0](video), (1, 3, 3), (1, 2, 2))
        x = self.stem[2](self.stem[1](x))
        pools = (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))
        for stage, (kernel, stride) in zip(self.stages, pools, strict=True):
            x = stage(_pool(x, kernel, stride))
        return self.head(F.avg_pool3d(x, (2, 7, 7), 1)).flatten(2).mean(dim=2)


def preprocess(frames: Tensor) -> Tensor:
    """uint8 clips (B, T, H, W, 3) as I3D sees them: (B, 3, T, 224, 224) in -1..1, each frame resized bilinearly."""
    pixels = frames.flatten(0, 1).movedim(-1, 1).float()
    resized = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return (2 * resized / 255 - 1).unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(_pad(x, kernel, stride), kernel, stride)


def _pad(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around T, H, W so that each becomes itself over the stride, rounded up; odd ones go behind."""
    pads: list[int] = []
    for size, span, step in zip(x.shape[:1:-1], reversed(kernel), reversed(stride), strict=True):
        missing = max(0, (-(-size // step) - 1) * step + span - size)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads)
