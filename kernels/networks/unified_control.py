"""VersVideo's unified ControlNet (section 3.4): one network for all visual conditions, one small adapter for each.

A copy of the denoiser's encoder and middle, which also sees maps of the frames, tells the frozen denoiser what to add
to its skips and its middle. Of the adapters exactly one runs, that of the condition that a map is of (Eq. 10).

Shapes: B videos, T frames, Z latent channels, H, W latent size, C channels of a level, N text tokens, D context width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..layers.embeddings import Perceptron
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from .skeleton import Descent
from .versvideo import VersVideoUNet, VersVideoUNetConfig, as_rows, first_step, unet_blocks

CONDITIONS = ("image", "canny", "hed", "depth")
"""Those of the paper."""
HINT_FACTOR = 8
"""Pixels of a map for each latent, in height and width."""
ADAPTER_WIDTHS, ADAPTER_STRIDES = (16, 16, 32, 32, 96, 96, 256), (1, 1, 2, 1, 2, 1, 2, 1)


@dataclass(frozen=True)
class UnifiedControlConfig:
    """Numbers of the ControlNet.

    Attributes:
        unet: of the denoiser that it steers, merged.
        conditions: that it has adapters for.
    """

    unet: VersVideoUNetConfig = field(default_factory=VersVideoUNetConfig)
    conditions: tuple[str, ...] = CONDITIONS


class Adapter(nn.Sequential):
    """3x3 convolutions with SiLU between that bring a map to the size and width of the latents' features."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        widths = (3, *ADAPTER_WIDTHS, channels)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths, widths[1:], ADAPTER_STRIDES, strict=False):
            conv = operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, dtype=dtype, device=device)
            layers += [conv, nn.SiLU()]
        super().__init__(*layers[:-1])


class UnifiedControlNet(nn.Module):
    """The shared network and its adapters."""

    def __init__(
        self,
        config: UnifiedControlConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.config, self.operations, unet = config, operations, config.unet
        width = unet.model_channels
        self.time_embedding = Perceptron(width, 4 * width, **build)
        self.conv_in = operations.Conv2d(unet.in_channels, width, 3, padding=1, **layer)
        self.skeleton = Descent(
            width, unet.channel_mult, unet.num_res_blocks, unet.attention_factors, unet_blocks(unet, build)
        )
        widths = self.skeleton.skip_widths
        self.zero_convs = nn.ModuleList(operations.Conv2d(width, width, 1, **layer) for width in widths)
        self.middle_out = operations.Conv2d(widths[-1], widths[-1], 1, **layer)
        self.adapters = nn.ModuleDict({name: Adapter(width, **build) for name in config.conditions})

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None, hints: Tensor, condition: str
    ) -> list[Tensor]:
        """What is added to the denoiser's skips, its input's first, and to its middle, (B*T, C, H', W') each.

        Args:
            x, timesteps, context: of the denoiser, (B, Z, T, H, W), (B,) and (B, N, D).
            hints: maps of the frames (B, T, 3, 8 H, 8 W) in 0..1.
            condition: what they are maps of.

        Raises:
            ValueError: a condition without an adapter, or maps of another size.
        """
        self.check_condition(condition)
        batch, _, frames, *sides = x.shape
        expected = (batch, frames, 3, *(HINT_FACTOR * side for side in sides))
        if hints.shape != expected:
            raise ValueError(f"The maps have shape {tuple(hints.shape)}, expected {expected}.")
        step = first_step(self.config.unet, self.time_embedding, x, timesteps, context)
        maps = hints.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(as_rows(x)) + self.adapters[condition](maps)
        middle, skips = self.skeleton(h, step)
        return [*(conv(skip) for conv, skip in zip(self.zero_convs, skips, strict=True)), self.middle_out(middle)]

    def check_condition(self, condition: str) -> None:
        """Raise ValueError for a condition without an adapter."""
        if condition not in self.adapters:
            names = ", ".join(self.config.conditions)
            raise ValueError(f"There is no adapter for the condition {condition!r}, expected one of: {names}.")

    @classmethod
    @torch.no_grad()
    def of(cls, unet: VersVideoUNet, conditions: Sequence[str] = CONDITIONS) -> "UnifiedControlNet":
        """One that begins as the encoder of a denoiser, and has no effect yet."""
        merged = unet.merged()
        network = cls(UnifiedControlConfig(merged.config, tuple(conditions)), operations=unet.operations)
        own = network.state_dict()
        network.load_state_dict({name: x for name, x in merged.state_dict().items() if name in own}, strict=False)
        silent = [*network.zero_convs, network.middle_out]
        silent += [adapter[-1] for adapter in network.adapters.values()]  # type: ignore[index]
        for layer in silent:
            for parameter in layer.parameters():
                parameter.zero_()
        return network

    @torch.no_grad()
    def with_condition(self, name: str) -> "UnifiedControlNet":
        """The same weights with one more adapter, which has no effect yet.

        Raises:
            ValueError: there is one of this name.
        """
        if name in self.adapters:
            raise ValueError(f"There is an adapter for the condition {name!r} already.")
        config = replace(self.config, conditions=(*self.config.conditions, name))
        network = type(self)(config, operations=self.operations)
        network.load_state_dict(self.state_dict(), strict=False)
        for parameter in network.adapters[name][-1].parameters():  # type: ignore[index]
            parameter.zero_()
        return network
