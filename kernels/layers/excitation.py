"""Multi-excitation convolution of VersVideo (section 3.1), as residual blocks use it in the place of a 3x3 one.

Shapes: B videos, T frames, C channels, R = C / 16 squeezed ones, D output channels, P = H*W.
"""

import torch
from torch import Tensor, nn

from ..fused.excitation import add_excited, shift, shifted_mean, window_sums
from .operations import BuildKeywords, LayerKeywords, TorchOperations

SQUEEZE = 16
SHIFTED_SHARE = 8
"""One channel in eight looks at the next frame, one in eight at the one before."""


def shift_taps(channels: int) -> Tensor:
    """Taps of the shift before training, (C, 3): of the frame before, of the frame itself and of the next one."""
    taps = torch.zeros(channels, 3)
    share = channels // SHIFTED_SHARE
    taps[:share, 2] = taps[share : 2 * share, 0] = taps[2 * share :, 1] = 1.0
    return taps


class ChannelExcitation(nn.Module):
    """Mask of the channels of each frame from their means: squeeze, convolution over three frames, expand (Eq. 4)."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        inner = channels // SQUEEZE
        self.squeeze = operations.Linear(channels, inner, bias=False, **layer)
        self.temporal = operations.Conv2d(inner, inner, (3, 1), padding=(1, 0), bias=False, **layer)
        self.expand = operations.Linear(inner, channels, bias=False, **layer)

    def forward(self, means: Tensor) -> Tensor:
        """Means (B, T, C) of the shifted input -> mask of the same shape."""
        squeezed = self.temporal(self.squeeze(means).transpose(1, 2)[..., None])
        return self.expand(squeezed[..., 0].transpose(1, 2)).sigmoid()


class MotionExcitation(nn.Module):
    """Mask of the channels of each frame from what changes until the next one (Eq. 5).

    The motion of a squeezed clip s is m[t] = K * s[t + 1] - s[t], with a 3x3 convolution K, and zero in the last
    frame; only its mean is used. Everything before the mean is linear: nine sums of the input are enough.
    """

    def __init__(
        self,
        channels: int,
        *,
        depthwise: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        """`depthwise`: whether K keeps the squeezed channels apart."""
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        inner = channels // SQUEEZE
        self.operations = operations
        self.squeeze = operations.Linear(channels, inner, bias=False, **layer)
        groups = inner if depthwise else 1
        self.spatial = operations.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False, **layer)
        self.expand = operations.Linear(inner, channels, bias=False, **layer)

    def forward(self, windows: Tensor) -> Tensor:
        """What the taps of K see of the shifted input, (B, T, 3, 3, C), divided by H*W -> mask (B, T, C)."""
        squeezed = self.squeeze(windows)
        with self.operations.weights(self.spatial, squeezed) as (kernel, _):
            depthwise = self.spatial.groups > 1 or kernel.shape[0] == 1
            equation = "btijr,rij->btr" if depthwise else "btijq,rqij->btr"
            moved = torch.einsum(equation, squeezed, kernel[:, 0] if depthwise else kernel)
        motion = torch.zeros_like(moved)
        motion[:, :-1] = moved[:, 1:] - squeezed[:, :-1, 1, 1]
        return self.expand(motion).sigmoid()


class MultiExcitation(nn.Module):
    """A 3x3 convolution of frames, one of three frames, and a gated sum of three excitations of the shifted input.

    out = temporal(spatial(z)) + gate * project(z_hat * (3 + M_S + M_C + M_M)), z_hat = shift(z): what the paths of the
    paper give together, computed by one multiplier. Where gates are zero, no excitation acts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        depthwise_motion: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        """ValueError where the squeeze does not divide the channels."""
        super().__init__()
        if in_channels % SQUEEZE:
            raise ValueError(f"{in_channels} channels cannot be squeezed by {SQUEEZE}")
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.operations = operations
        self.spatial = operations.Conv2d(in_channels, out_channels, 3, padding=1, **layer)
        self.temporal = operations.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0), **layer)
        self.shift = operations.Conv2d(
            in_channels, in_channels, (3, 1), padding=(1, 0), groups=in_channels, bias=False, **layer
        )
        self.place = operations.Conv3d(1, 1, 3, padding=1, bias=False, **layer)
        self.channel = ChannelExcitation(in_channels, **build)
        self.motion = MotionExcitation(in_channels, depthwise=depthwise_motion, **build)
        # One number for each channel.
        self.gate = operations.Conv2d(out_channels, out_channels, 1, groups=out_channels, bias=False, **layer)
        same = in_channels == out_channels
        self.project = None if same else operations.Linear(in_channels, out_channels, bias=False, **layer)

    def forward(self, z: Tensor, frames: int) -> Tensor:
        """z (B*T, C, H, W) -> (B*T, D, H, W)."""
        y = self.space_time(z, frames)
        video = z.permute(0, 2, 3, 1).unflatten(0, (-1, frames))
        operations = self.operations
        with operations.weights(self.shift, z) as (kernel, _):
            taps = kernel[:, 0, :, 0]
            windows = shift(window_sums(video) / z[0, 0].numel(), taps).to(z.dtype)
            places = self.place(shifted_mean(video, taps)[:, None])[:, 0].sigmoid().flatten(2)
            each_frame = 3 + self.channel(windows[:, :, 1, 1]) + self.motion(windows)
            pixels = video.flatten(2, 3)
            with operations.weights(self.gate, z) as (gate, _):
                if self.project is None:
                    out = add_excited(y, pixels, taps, places, each_frame, gate.flatten())
                else:
                    with operations.weights(self.project, z) as (matrix, _):
                        out = add_excited(y, pixels, taps, places, each_frame, gate.flatten(), matrix)
        return out.reshape(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)

    def space_time(self, z: Tensor, frames: int) -> Tensor:
        """The two convolutions alone: z (B*T, C, H, W) -> (B, T, P, D)."""
        clip = self.spatial(z).permute(0, 2, 3, 1).unflatten(0, (-1, frames)).flatten(2, 3)
        return self.temporal(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    @torch.no_grad()
    def start_as_image_layer(self) -> None:
        """Set all weights over time so that the layer is its 3x3 convolution, frame by frame."""
        nn.init.dirac_(self.temporal.weight)
        for zero in (self.temporal.bias, self.gate.weight):
            assert zero is not None
            zero.zero_()
        self.shift.weight.copy_(shift_taps(len(self.shift.weight))[:, None, :, None])
