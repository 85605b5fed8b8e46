"""Residual blocks and resampling on videos (B*T, C, H, W) in channels-last memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.group_norm import group_norm
from .operations import LayerKeywords, TorchOperations, norm_groups


@dataclass
class Step:
    """What one call of a denoising network shares between its layers.

    Attributes:
        frames: T, frames per video.
        embedding: embedding of the diffusion time (or of more) after its SiLU, (B, E), or per frame (B*T, E).
        context: text tokens (B, N, D), or None.
        over_time: whether layers that connect frames act.
    """

    frames: int
    embedding: Tensor
    context: Tensor | None = None
    over_time: bool = True


class ClipNorm(nn.Module):
    """GroupNorm over whole clips or single frames, with an optional SiLU behind it."""

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        activate: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.activate, self.operations = activate, operations
        self.norm = operations.GroupNorm(norm_groups(channels, groups), channels, eps=eps, dtype=dtype, device=device)

    def forward(self, x: Tensor, frames: int, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x (B*frames, C, H, W), statistics over `frames` frames together; scale and shift (B, C)."""
        groups, eps, activate = self.norm.num_groups, self.norm.eps, self.activate
        with self.operations.weights(self.norm, x) as (weight, bias):
            return group_norm(x, groups, weight, bias, eps, frames=frames, scale=scale, shift=shift, activate=activate)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, with the time embedding between.

    The embedding is added before the second norm, or, with `scale_shift`, scales and shifts its result.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        groups: int = 32,
        scale_shift: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.scale_shift = scale_shift
        self.norm1 = ClipNorm(in_channels, groups=groups, activate=True, operations=operations, **layer)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **layer)
        self.time = operations.Linear(embedding_width, (2 if scale_shift else 1) * out_channels, **layer)
        self.norm2 = ClipNorm(out_channels, groups=groups, activate=True, operations=operations, **layer)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **layer)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else operations.Conv2d(in_channels, out_channels, 1, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C_in, H, W) -> (B*T, C_out, H, W)."""
        time = self.time(step.embedding)
        h = self.conv1(self.norm1(x, step.frames))
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h, step.frames, scale, shift)
        else:
            h = h + time.repeat_interleave(step.frames, dim=0)[:, :, None, None]
            h = self.norm2(h, step.frames)
        return self.skip(x) + self.conv2(h)


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

    def forward(self, x: Tensor) -> Tensor:
        """x (B*T, C, H, W) -> (B*T, C, ceil(H/2), ceil(W/2))."""
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

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x (B*T, C, H, W) -> (B*T, C, *size), twice the size when none is given."""
        height, width = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))
