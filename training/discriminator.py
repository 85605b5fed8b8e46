"""Discriminators of autoencoders, on patches of single frames or of clips."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """4x4 convolutions with batch norm; all but the last two halve the frame. Released widths: 64, 128, 256, 512.

    Over time they are three frames long, and leave the clip's length as it is.
    """

    def __init__(self, channels: tuple[int, ...], in_channels: int = 3, over_time: bool = False) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Module:
            if not over_time:
                return nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=bias)
            return nn.Conv3d(inputs, outputs, (3, 4, 4), stride=(1, stride, stride), padding=1, bias=bias)

        norm = nn.BatchNorm3d if over_time else nn.BatchNorm2d
        layers: list[nn.Module] = [conv(in_channels, channels[0], 2), nn.LeakyReLU(0.2)]
        for index in range(1, len(channels)):
            stride = 1 if index == len(channels) - 1 else 2
            layers += [
                conv(channels[index - 1], channels[index], stride, bias=False),
                norm(channels[index]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(conv(channels[-1], 1, 1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> one logit per patch (N, 1, H', W'); clips (B, 3, T, H, W) -> (B, 1, T, H', W')."""
        logits: Tensor = self.layers(frames)
        return logits


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
