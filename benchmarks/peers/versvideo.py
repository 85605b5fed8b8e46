"""VersVideo's multi-excitation convolution path by path, as the paper prints it, of plain `torch.nn` layers.

Shapes: B videos, C channels, T frames, H, W; between layers a video is (B, C, T, H, W).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelPath(nn.Module):
    """Eq. 4."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.temporal = nn.Conv1d(inner, inner, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Shifted input (B, C, T, H, W) -> excited, same shape."""
        means = z.mean((3, 4))[..., None]
        inner = self.temporal(self.squeeze(means)[..., 0])
        return z + z * self.expand(inner[..., None])[..., None].sigmoid()


class MotionPath(nn.Module):
    """Eq. 5; there is no motion in the last frame."""

    def __init__(self, channels: int, inner: int, depthwise: bool) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, groups=inner if depthwise else 1, bias=False)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Shifted input (B, C, T, H, W) -> excited, same shape."""
        squeezed = by_frame(self.squeeze, z)
        motion = by_frame(self.spatial, squeezed[:, :, 1:]) - squeezed[:, :, :-1]
        motion = F.pad(motion, (0, 0, 0, 0, 0, 1)).mean((3, 4))[..., None]
        return z + z * self.expand(motion)[..., None].sigmoid()


class MultiExcitation(nn.Module):
    """The 2D+1D convolution, and three excitations of the shifted input beside it."""

    def __init__(self, in_channels: int, out_channels: int, depthwise: bool = True) -> None:
        super().__init__()
        inner = in_channels // 16
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.temporal = nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))
        self.shift = nn.Conv1d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.ste = nn.Conv3d(1, 1, 3, padding=1, bias=False)
        self.ce = ChannelPath(in_channels, inner)
        self.me = MotionPath(in_channels, inner, depthwise)
        self.gate = nn.Parameter(torch.zeros(out_channels))
        same = in_channels == out_channels
        self.proj = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Input (B, C, T, H, W) -> (B, C', T, H, W)."""
        return self.space_time(z) + self.gate.view(-1, 1, 1, 1) * self.proj(self.excitations(z))

    def space_time(self, z: Tensor) -> Tensor:
        """The 2D+1D path: (B, C, T, H, W) -> (B, C', T, H, W)."""
        return self.temporal(by_frame(lambda frames: F.conv2d(frames, self.weight, self.bias, padding=1), z))

    def shifted(self, z: Tensor) -> Tensor:
        """(B, C, T, H, W) -> same shape."""
        pixels = z.permute(0, 3, 4, 1, 2)
        return self.shift(pixels.flatten(0, 2)).view(pixels.shape).permute(0, 3, 4, 1, 2)

    def excitations(self, z: Tensor) -> Tensor:
        """The sum of the three paths of the shifted input: (B, C, T, H, W) -> same shape."""
        z = self.shifted(z)
        place = z + z * self.ste(z.mean(1, keepdim=True)).sigmoid()
        return place + self.ce(z) + self.me(z)


def by_frame(function: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """A function of frames on every frame of (B, C, T, H, W)."""
    frames = video.transpose(1, 2)
    return function(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)
