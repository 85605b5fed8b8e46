"""A start for 3D autoencoders: a network that averages the clip down and interpolates it up again.

Deep networks find the strongest directions of the data first, here the background's brightness, and stay on a plateau
before the weaker ones, such as the colours of small objects. Starting from plain resampling skips that plateau.
"""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.networks.video_autoencoder import ResidualBlock3d, SameConv3d, SameConvTranspose3d, VideoAutoencoder

NOISE = 0.1
LOG_VARIANCE = -6.0
DOWNSAMPLING_KERNEL = 4
INTERPOLATION = (0.25, 0.75, 0.75, 0.25)


@torch.no_grad()
def initialize_as_resampling(network: VideoAutoencoder) -> None:
    """Set the weights in place: the first channels carry the picture through strided averages and interpolation, all
    others start with a tenth of torch's usual weights. The posterior starts narrow (log-variance -6)."""
    encoder, decoder = network.encoder, network.decoder
    for module in network.modules():
        if isinstance(module, ResidualBlock3d):
            module.conv2.conv.weight.mul_(NOISE)
        elif isinstance(module, SameConvTranspose3d):
            _interpolate(module.conv)
        elif isinstance(module, SameConv3d) and module.kernel == DOWNSAMPLING_KERNEL:
            _average(module.conv)
    for convolution in (encoder.conv_in.conv, decoder.conv_out.conv):
        _copy(convolution, min(convolution.weight.shape[:2]))
    channels, bias = network.config.embed_dim, network.quant_conv.bias
    assert bias is not None
    network.quant_conv.weight[channels:].mul_(NOISE)
    bias[channels:] = LOG_VARIANCE


def _copy(convolution: nn.Conv3d, channels: int) -> None:
    middle = [(size - 1) // 2 for size in convolution.kernel_size]
    for channel in range(channels):
        convolution.weight[channel].mul_(NOISE)
        convolution.weight[channel, channel, middle[0], middle[1], middle[2]] += 1.0


def _average(convolution: nn.Conv3d) -> None:
    """Mean of the central 2 x 2 x 2 taps of the 4 x 4 x 4 kernel."""
    for channel in range(convolution.in_channels):
        convolution.weight[channel].mul_(NOISE)
        convolution.weight[channel, channel, 1:3, 1:3, 1:3] += 1 / 8


def _interpolate(convolution: nn.ConvTranspose3d) -> None:
    taps = torch.tensor(INTERPOLATION)
    kernel = torch.einsum("t,h,w->thw", taps, taps, taps)
    for channel in range(min(convolution.in_channels, convolution.out_channels)):
        convolution.weight[:, channel].mul_(NOISE)
        convolution.weight[channel, channel] += kernel
