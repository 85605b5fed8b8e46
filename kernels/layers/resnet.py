"""Residual blocks and resampling on videos (B*T, C, H, W) in channels-last memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.group_norm import Activation, group_norm
from .operations import LayerKeywords, TorchOperations, norm_groups


@dataclass
class Step:
    """What one call of a denoising network shares between its layers.

    Attributes:
        frames: T, frames per video.
        embedding: embedding of the diffusion time (or of more) after its activation, (B, E), or per frame (B*T, E).
        context: what layers see of the text, (B, N, D), or None.
        over_time: whether layers that connect frames act.
    """

    frames: int
    embedding: Tensor
    context: Tensor | None = None
    over_time: bool = True


class ClipNorm(nn.Module):
    """GroupNorm over whole clips or single frames, with an optional activation behind it."""

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.activation, self.operations = activation, operations
        self.norm = operations.GroupNorm(norm_groups(channels, groups), channels, eps=eps, dtype=dtype, device=device)

    def forward(self, x: Tensor, frames: int, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x (B*frames, C, H, W), statistics over `frames` frames together; scale and shift (B, C)."""
        groups, eps, activation = self.norm.num_groups, self.norm.eps, self.activation
        with self.operations.weights(self.norm, x) as (weight, bias):
            return group_norm(
                x, groups, weight, bias, eps, frames=frames, scale=scale, shift=shift, activation=activation
            )


class ResidualBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice, with the time embedding between.

    The embedding is added before the second norm, or, with `scale_shift`, scales and shifts its result. With
    `resample` the block changes height and width, behind its first activation and on the way around it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        groups: int = 32,
        scale_shift: bool = False,
        activation: Activation = "silu",
        resample: Callable[[Tensor], Tensor] | None = None,
        divisor: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        """`divisor`: of the sum that the block gives."""
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.scale_shift, self.resample, self.divisor = scale_shift, resample, divisor
        self.norm1 = ClipNorm(in_channels, groups=groups, activation=activation, operations=operations, **layer)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **layer)
        self.time = operations.Linear(embedding_width, (2 if scale_shift else 1) * out_channels, **layer)
        self.norm2 = ClipNorm(out_channels, groups=groups, activation=activation, operations=operations, **layer)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **layer)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else operations.Conv2d(in_channels, out_channels, 1, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C_in, H, W) -> (B*T, C_out, H, W), or the height and width of the resampling."""
        time = self.time(step.embedding)
        h = self.norm1(x, step.frames)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h, step.frames, scale, shift)
        else:
            h = h + time.repeat_interleave(step.frames, dim=0)[:, :, None, None]
            h = self.norm2(h, step.frames)
        out = self.skip(x) + self.conv2(h)
        return out if self.divisor == 1.0 else out.div_(self.divisor)


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor, step: Step | None = None) -> Tensor:
        """x (B*T, C, H, W) -> (B*T, C, ceil(H/2), ceil(W/2)), whatever the step."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor, step: Step | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """x (B*T, C, H, W) -> (B*T, C, *size), twice the size when none is given, whatever the step."""
        height, width = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))
