"""The U-Net walk that the systems share: stages down, a middle, stages up, with skips; the blocks are given.

Stages are numbered like the entries of the usual U-Net lists (one per residual block or downsampling going down, one
per residual block going up), so released key names map by rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.resnet import Step


@dataclass(frozen=True)
class Blocks:
    """Makers of the parts of a U-Net.

    Attributes:
        residual: (in channels, out channels) -> residual block, called with (x, step).
        attention: (channels, level) -> attention block, called with (x, step), or none; the middle is of the last
            level.
        downsample: (channels) -> halving, called with (x, step).
        upsample: (channels) -> doubling, called with (x, step, size).
    """

    residual: Callable[[int, int], nn.Module]
    attention: Callable[[int, int], nn.Module | None]
    downsample: Callable[[int], nn.Module]
    upsample: Callable[[int], nn.Module]


class Stage(nn.Module):
    """A residual block, attention and resampling, each optional, in this order."""

    def __init__(
        self,
        residual: nn.Module | None = None,
        attention: nn.Module | None = None,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor, step: Step, size: tuple[int, int] | None = None) -> Tensor:
        """x (B*T, C, H, W) -> (B*T, C', H', W'); `size` is the height and width after upsampling."""
        if self.residual is not None:
            x = self.residual(x, step)
        if self.attention is not None:
            x = self.attention(x, step)
        if self.downsample is not None:
            x = self.downsample(x, step)
        if self.upsample is not None:
            x = self.upsample(x, step, size)
        return x


class Descent(nn.Module):
    """Encoder and middle of a U-Net."""

    def __init__(
        self,
        channels: int,
        multipliers: tuple[float, ...],
        residual_blocks: int | tuple[int, ...],
        attention_factors: tuple[int, ...],
        blocks: Blocks,
    ) -> None:
        """Attributes as in the papers: `attention_factors` are the downsampling factors with attention.

        There may be as many residual blocks in every level going down, or a number for each.
        """
        super().__init__()
        widths = [round(channels * multiplier) for multiplier in multipliers]
        counts = (residual_blocks,) * len(widths) if isinstance(residual_blocks, int) else residual_blocks
        attends = [2**level in attention_factors for level in range(len(widths))]
        down, skips = [], [channels]
        current = channels
        self.skip_widths = skips
        for level, width in enumerate(widths):
            for _ in range(counts[level]):
                attention = blocks.attention(width, level) if attends[level] else None
                down.append(Stage(blocks.residual(current, width), attention))
                current = width
                skips.append(current)
            if level + 1 < len(widths):
                down.append(Stage(downsample=blocks.downsample(current)))
                skips.append(current)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            [
                Stage(blocks.residual(current, current), blocks.attention(current, len(widths) - 1)),
                Stage(blocks.residual(current, current)),
            ]
        )

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, list[Tensor]]:
        """x (B*T, channels, H, W) -> what the middle gives, and the skips, x first."""
        skips = [x]
        for stage in self.down:
            x = stage(x, step)
            skips.append(x)
        for stage in self.middle:
            x = stage(x, step)
        return x, skips


class Skeleton(nn.Module):
    """Encoder, middle and decoder of a U-Net with one residual block more per level going up than going down."""

    def __init__(
        self,
        channels: int,
        multipliers: tuple[float, ...],
        residual_blocks: int | tuple[int, ...],
        attention_factors: tuple[int, ...],
        blocks: Blocks,
    ) -> None:
        """As of `Descent`."""
        super().__init__()
        descent = Descent(channels, multipliers, residual_blocks, attention_factors, blocks)
        self.down, self.middle = descent.down, descent.middle
        widths = [round(channels * multiplier) for multiplier in multipliers]
        counts = (residual_blocks,) * len(widths) if isinstance(residual_blocks, int) else residual_blocks
        attends = [2**level in attention_factors for level in range(len(widths))]
        skips, current = list(descent.skip_widths), widths[-1]
        up = []
        for level, width in reversed(list(enumerate(widths))):
            for index in range(counts[level] + 1):
                attention = blocks.attention(width, level) if attends[level] else None
                last = index == counts[level] and level > 0
                residual = blocks.residual(current + skips.pop(), width)
                up.append(Stage(residual, attention, upsample=blocks.upsample(width) if last else None))
                current = width
        self.up = nn.ModuleList(up)

    def forward(self, x: Tensor, step: Step, control: Sequence[Tensor | None] | None = None) -> Tensor:
        """x (B*T, channels, H, W) -> (B*T, channels * first multiplier, H, W).

        `control` is added to what the decoder reads: one for every skip, x first, and one for the middle's output.
        """
        skips = [x]
        for stage in self.down:
            x = stage(x, step)
            skips.append(x)
        for stage in self.middle:
            x = stage(x, step)
        if control is not None:
            steered = [
                h if added is None else h + added.to(h.dtype) for h, added in zip([*skips, x], control, strict=True)
            ]
            x = steered.pop()
            skips = steered
        for stage in self.up:
            x = torch.cat([x, skips.pop()], dim=1)
            size = tuple(skips[-1].shape[2:]) if skips else None
            x = stage(x, step, size)
        return x
