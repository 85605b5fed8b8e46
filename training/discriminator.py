"""The autoencoder's discriminator on patches of single frames."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """4x4 convolutions with batch norm; all but the last two halve the frame. Released widths: 64, 128, 256, 512."""

    def __init__(self, channels: tuple[int, ...], in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index in range(1, len(channels)):
            stride = 1 if index == len(channels) - 1 else 2
            layers += [
                nn.Conv2d(channels[index - 1], channels[index], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(channels[index]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(channels[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> one logit per patch (N, 1, H', W')."""
        logits: Tensor = self.layers(frames)
        return logits


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
