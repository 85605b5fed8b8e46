"""LVDM's 3D autoencoder (section 3.1): fully convolutional, not causal, replicate padding everywhere.

Shapes: B clips, T frames, H, W pixels; latents are smaller by the factors of `downsample`. Pixels are in -1..1.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations, norm_groups

Stride = tuple[int, int, int]


@dataclass(frozen=True)
class VideoAutoencoderConfig:
    """Numbers of the autoencoder.

    Attributes:
        n_hiddens: base width; stage j of the encoder has n_hiddens * 2^(j+1) channels.
        downsample: factors in time, height and width, powers of two.
        z_channels: channels of the bottleneck; embed_dim: channels of the latents.
        image_channels: 3 for colour.
        norm_groups: groups of every GroupNorm; a group of one channel would lose the clip's colour.
        framewise: every frame is encoded and decoded by itself, for models whose latents are pictures.

    Raises:
        ValueError: frame-wise, but time is shrunk.
    """

    n_hiddens: int = 32
    downsample: tuple[int, int, int] = (4, 8, 8)
    z_channels: int = 4
    embed_dim: int = 4
    image_channels: int = 3
    norm_groups: int = 32
    framewise: bool = False

    def __post_init__(self) -> None:
        if self.framewise and self.downsample[0] != 1:
            raise ValueError(f"a frame-wise autoencoder has a factor of 1 in time, found {self.downsample[0]}")

    def strides(self) -> list[Stride]:
        """Stride per stage: an axis is halved while its factor lasts; the decoder doubles in the same order."""
        time, height, width = (int(math.log2(factor)) for factor in self.downsample)
        stages = range(max(time, height, width))
        return [(1 + (time > stage), 1 + (height > stage), 1 + (width > stage)) for stage in stages]


class SameConv3d(nn.Module):
    """3D convolution whose output has the input's size divided by the stride; edges are replicated.

    Of k - s padded slices, the larger half comes in front.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: Stride = (1, 1, 1),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.padding = same_padding(kernel, stride)
        self.kernel, self.stride = kernel, stride[0]
        self.conv = operations.Conv3d(in_channels, out_channels, kernel, stride=stride, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T/s, H/s, W/s)."""
        frames = x.shape[2] // self.stride
        chunk = max(1, _CHUNK_VALUES // max(1, x[:, :, 0].numel() * self.stride))
        if torch.is_grad_enabled() or chunk >= frames:
            return self.conv(replicate(x, self.padding))
        # Without gradients the padded copy is made for a few frames at a time.
        parts = [self._slice(x, start, min(start + chunk, frames)) for start in range(0, frames, chunk)]
        return torch.cat(parts, dim=2)

    def _slice(self, x: Tensor, start: int, stop: int) -> Tensor:
        first = start * self.stride - self.padding[4]
        last = (stop - 1) * self.stride - self.padding[4] + self.kernel
        front, back = max(0, -first), max(0, last - x.shape[2])
        return self.conv(replicate(x[:, :, max(0, first) : last], (*self.padding[:4], front, back)))


class SameConvTranspose3d(nn.Module):
    """Transposed 3D convolution that multiplies the size by the stride; edges are replicated first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.padding = same_padding(4, stride)
        self.conv = operations.ConvTranspose3d(
            in_channels, out_channels, 4, stride=stride, padding=3, dtype=dtype, device=device
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', s*T, s*H, s*W)."""
        return self.conv(replicate(x, self.padding))


class ResidualBlock3d(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), statistics over the whole clip."""

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.norm1 = operations.GroupNorm(norm_groups(channels, groups), channels, eps=1e-6, **layer)
        self.conv1 = SameConv3d(channels, channels, 3, operations=operations, **layer)
        self.norm2 = operations.GroupNorm(norm_groups(channels, groups), channels, eps=1e-6, **layer)
        self.conv2 = SameConv3d(channels, channels, 3, operations=operations, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> same shape."""
        h = self.conv1(_activate(self.norm1(x)))
        return self.conv2(_activate(self.norm2(h))).add_(x)


class Encoder3d(nn.Module):
    """Convolution, per stage a strided convolution and a residual block, then norm, SiLU and the output convolution."""

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = config.n_hiddens
        self.conv_in = SameConv3d(config.image_channels, width, 3, **build)
        self.stages = nn.ModuleList()
        for stride in config.strides():
            down = SameConv3d(width, 2 * width, 4, stride, **build)
            width = 2 * width
            residual = ResidualBlock3d(width, config.norm_groups, **build)
            self.stages.append(nn.Sequential(OrderedDict(down=down, residual=residual)))
        self.norm_out = operations.GroupNorm(norm_groups(width, config.norm_groups), width, eps=1e-6, **layer)
        self.conv_out = SameConv3d(width, 2 * config.z_channels, 3, **build)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> (B, 2 * z_channels, T/f, H/f, W/f)."""
        h = self.conv_in(x)
        for stage in self.stages:
            h = stage(h)
        return self.conv_out(_activate(self.norm_out(h)))


class Decoder3d(nn.Module):
    """Per stage a transposed convolution and two residual blocks, then the output convolution without norm."""

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        strides = config.strides()
        width = config.z_channels
        self.stages = nn.ModuleList()
        for stage, stride in enumerate(strides):
            out = config.n_hiddens * 2 ** (len(strides) - stage)
            parts = OrderedDict[str, nn.Module](
                up=SameConvTranspose3d(width, out, stride, **build),
                residual1=ResidualBlock3d(out, config.norm_groups, **build),
                residual2=ResidualBlock3d(out, config.norm_groups, **build),
            )
            self.stages.append(nn.Sequential(parts))
            width = out
        self.conv_out = SameConv3d(width, config.image_channels, 3, **build)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, z_channels, t, h, w) -> (B, 3, f*t, f*h, f*w)."""
        for stage in self.stages:
            z = stage(z)
        return self.conv_out(z)


class VideoAutoencoder(nn.Module):
    """Encoder to Gaussian moments and decoder (LVDM section 3.1)."""

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.config = config
        self.encoder = Encoder3d(config, operations=operations, **layer)
        self.decoder = Decoder3d(config, operations=operations, **layer)
        self.quant_conv = operations.Conv3d(2 * config.z_channels, 2 * config.embed_dim, 1, **layer)
        self.post_quant_conv = operations.Conv3d(config.embed_dim, config.z_channels, 1, **layer)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, T, H, W) in -1..1 -> mean and log-variance (B, embed_dim, T/f, H/f, W/f).

        Raises:
            ValueError: a size that is not a multiple of its factor.
        """
        sizes = tuple(x.shape[2:])
        if any(size % factor for size, factor in zip(sizes, self.config.downsample, strict=True)):
            factors = self.config.downsample
            raise ValueError(
                f"Frames, height and width must be multiples of {factors}, found {sizes}: "
                "cut or resize the clip before encoding."
            )
        moments = self._by_frame(lambda part: self.quant_conv(self.encoder(part)), x)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) in -1..1 -> mean latents, not scaled."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, embed_dim, t, h, w), not scaled -> pixels, not clamped."""
        return self._by_frame(lambda part: self.decoder(self.post_quant_conv(part)), z)

    def decode_frames(self, z: Tensor) -> Tensor:
        """Latents of single frames (N, embed_dim, h, w), each decoded by itself -> pixels (N, 3, H, W)."""
        return self.decoder(self.post_quant_conv(z[:, :, None]))[:, :, 0]

    def _by_frame(self, layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Layers on clips (B, C, T, H, W), or on each of their frames alone."""
        if not self.config.framewise:
            return layers(x)
        frames = layers(x.transpose(1, 2).flatten(0, 1)[:, :, None])
        return frames[:, :, 0].unflatten(0, (x.shape[0], -1)).transpose(1, 2)


# Values per channel-complete chunk of a convolution without gradients: 64 MB in float32.
_CHUNK_VALUES = 1 << 24


def same_padding(kernel: int, stride: Stride) -> tuple[int, ...]:
    """Padding for `torch.nn.functional.pad` (width first): k - s per axis, the larger half in front."""
    totals = [kernel - step for step in reversed(stride)]
    return tuple(half for total in totals for half in ((total + 1) // 2, total // 2))


def replicate(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Pad (B, C, T, H, W) by repeating the edges."""
    return F.pad(x, padding, mode="replicate") if any(padding) else x


def _activate(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())
