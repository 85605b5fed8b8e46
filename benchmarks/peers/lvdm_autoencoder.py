"""LVDM's 3D autoencoder as released, composed of plain `torch.nn` layers; modules carry the released names.

Shapes: B clips, C channels, T frames, H, W.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.networks.video_autoencoder import VideoAutoencoderConfig

Stride = tuple[int, int, int]


class SamePadConv3d(nn.Module):
    """Replicate padding by k - s per axis, the larger half in front, then a convolution without padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        self.padding = edges(kernel, stride)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T/s, H/s, W/s)."""
        return self.conv(F.pad(x, self.padding, mode="replicate"))


class SamePadConvTranspose3d(nn.Module):
    """The same padding, then a transposed convolution with padding k - 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: Stride) -> None:
        super().__init__()
        self.padding = edges(kernel, stride)
        self.convt = nn.ConvTranspose3d(in_channels, out_channels, kernel, stride=stride, padding=kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', s*T, s*H, s*W)."""
        return self.convt(F.pad(x, self.padding, mode="replicate"))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, and the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), SamePadConv3d(channels, channels, 3)
        self.norm2, self.conv2 = norm(channels), SamePadConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class EncoderStage(nn.Module):
    """Strided convolution and a residual block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.down = SamePadConv3d(in_channels, out_channels, 4, stride)
        self.res = ResBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', T/s, H/s, W/s)."""
        return self.res(self.down(x))


class DecoderStage(nn.Module):
    """Strided transposed convolution and two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.up = SamePadConvTranspose3d(in_channels, out_channels, 4, stride)
        self.res1, self.res2 = ResBlock(out_channels), ResBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C', s*T, s*H, s*W)."""
        return self.res2(self.res1(self.up(x)))


class Encoder(nn.Module):
    """First convolution, stages, norm, SiLU and the last convolution."""

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        widths = [config.n_hiddens * 2**stage for stage in range(stages(config) + 1)]
        self.conv_first = SamePadConv3d(config.image_channels, widths[0], 3)
        self.conv_blocks = nn.Sequential(
            *(EncoderStage(widths[stage], widths[stage + 1], strides(config, stage)) for stage in range(stages(config)))
        )
        self.final_block = nn.Sequential(
            norm(widths[-1]), nn.SiLU(), SamePadConv3d(widths[-1], 2 * config.z_channels, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> (B, 2 * z_channels, T/f, H/f, W/f)."""
        return self.final_block(self.conv_blocks(self.conv_first(x)))


class Decoder(nn.Module):
    """Stages and the last convolution, without norm or activation before it."""

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        count = stages(config)
        widths = [config.z_channels, *(config.n_hiddens * 2 ** (count - stage) for stage in range(count))]
        self.conv_blocks = nn.Sequential(
            *(DecoderStage(widths[stage], widths[stage + 1], strides(config, stage)) for stage in range(count))
        )
        self.conv_out = SamePadConv3d(widths[-1], config.image_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, z_channels, t, h, w) -> (B, 3, f*t, f*h, f*w)."""
        return self.conv_out(self.conv_blocks(z))


class Autoencoder(nn.Module):
    """Encoder, decoder and the 1x1x1 convolutions around the latents."""

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = SamePadConv3d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = SamePadConv3d(config.embed_dim, config.z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) -> mean latents (B, embed_dim, T/f, H/f, W/f)."""
        return self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, embed_dim, t, h, w) -> pixels (B, 3, f*t, f*h, f*w)."""
        return self.decoder(self.post_quant_conv(z))


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups over the whole clip."""
    return nn.GroupNorm(32, channels, eps=1e-6)


def edges(kernel: int, stride: Stride) -> list[int]:
    """Arguments of `F.pad`: width first, front = ceil((k - s) / 2), back = floor((k - s) / 2)."""
    padding = []
    for step in reversed(stride):
        padding += [-(-(kernel - step) // 2), (kernel - step) // 2]
    return padding


def stages(config: VideoAutoencoderConfig) -> int:
    """Log2 of the largest factor."""
    return max(config.downsample).bit_length() - 1


def strides(config: VideoAutoencoderConfig, stage: int) -> Stride:
    """Stride 2 on the axes whose log2 factor exceeds the stage."""
    time, height, width = (2 if factor.bit_length() - 1 > stage else 1 for factor in config.downsample)
    return time, height, width
