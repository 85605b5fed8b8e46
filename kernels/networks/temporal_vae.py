"""VersVideo's TCM-VAE (section 3.3): what makes a frame-wise image decoder one of videos.

Beside every level of the decoder stands a temporal compensation module, T_i(z_i) + z_i instead of z_i, and behind it a
refinement network, frame by frame. Encoder and decoder are those of an image model and no part of this: the modules are
put behind layers of the decoder for the time of a call.

Shapes: B videos, T frames, Z latent channels, C channels. Between layers a video is (B*T, C, H, W) in channels-last
memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.excitation import MultiExcitation
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from ..layers.resnet import ClipNorm, Downsample, Step, Upsample
from .skeleton import Blocks, Skeleton

REACH = 4
"""Frames before and after a frame that a compensation module sees: two for each of its convolutions."""


@dataclass(frozen=True)
class TemporalVAEConfig:
    """Numbers of what is added to the image decoder; the defaults are for that of Stable Diffusion.

    Attributes:
        widths: channels of the decoder's features behind level 0 (at the size of the image) to level 3, i = 1 to 4.
        latent_channels: of the image decoder.
        refinement_channels: base width of the refinement network; `refinement_mult` multiplies it per level.
        refinement_blocks: residual blocks of a level going down; there is one more going up.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    refinement_channels: int = 64
    refinement_mult: tuple[float, ...] = (1, 2, 4)
    refinement_blocks: int = 2


class CompensationModule(nn.Module):
    """T_i: norm, SiLU, multi-excitation convolution, twice; each reaches two frames to either side."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.norm1 = ClipNorm(channels, activation="silu", **build)
        self.conv1 = MultiExcitation(channels, channels, **build)
        self.norm2 = ClipNorm(channels, activation="silu", **build)
        self.conv2 = MultiExcitation(channels, channels, **build)

    def forward(self, z: Tensor, frames: int) -> Tensor:
        """z (B*T, C, H, W) -> T_i(z) + z, same shape (Eq. 13)."""
        h = self.conv1(self.norm1(z, 1), frames)
        return z + self.conv2(self.norm2(h, 1), frames)

    @torch.no_grad()
    def start_silent(self) -> None:
        """Give z back before training."""
        self.conv1.start_as_image_layer()
        self.conv2.start_as_image_layer()
        for parameter in self.conv2.temporal.parameters():
            parameter.zero_()


class PlainResidual(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, on frames; nothing is embedded."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.norm1 = ClipNorm(in_channels, activation="silu", operations=operations, **layer)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **layer)
        self.norm2 = ClipNorm(out_channels, activation="silu", operations=operations, **layer)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **layer)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else operations.Conv2d(in_channels, out_channels, 1, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C_in, H, W) -> (B*T, C_out, H, W), whatever the step."""
        return self.skip(x) + self.conv2(self.norm2(self.conv1(self.norm1(x, 1)), 1))


class RefinementNetwork(nn.Module):
    """R: a U-Net without attention that corrects decoded frames, each by itself (Eq. 12)."""

    def __init__(
        self,
        config: TemporalVAEConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = config.refinement_channels
        self.factor = 2 ** (len(config.refinement_mult) - 1)
        self.conv_in = operations.Conv2d(3, width, 3, padding=1, **layer)
        blocks = Blocks(
            residual=lambda cin, cout: PlainResidual(cin, cout, **build),
            attention=lambda channels, level: None,
            downsample=lambda channels: Downsample(channels, **build),
            upsample=lambda channels: Upsample(channels, **build),
        )
        self.skeleton = Skeleton(width, config.refinement_mult, config.refinement_blocks, (), blocks)
        self.norm_out = ClipNorm(width, activation="silu", **build)
        self.conv_out = operations.Conv2d(width, 3, 3, padding=1, **layer)

    def forward(self, images: Tensor) -> Tensor:
        """Frames (B*T, 3, H, W) in -1..1 -> the same, corrected.

        Raises:
            ValueError: a side is no multiple of how far the network shrinks it.
        """
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Frames are {width} x {height}, expected sides that are multiples of {self.factor}: crop or resize."
            )
        h = self.conv_in(images.contiguous(memory_format=torch.channels_last))
        h = self.skeleton(h, Step(1, images.new_empty(0)))
        return images + self.conv_out(self.norm_out(h, 1))


class TemporalVAE(nn.Module):
    """All that is added to an image decoder: `compensate` its features, and `refine` what it gives."""

    def __init__(
        self,
        config: TemporalVAEConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.config = config
        self.levels = nn.ModuleList(CompensationModule(width, **build) for width in config.widths)
        self.refine = RefinementNetwork(config, **build)

    def compensate(self, z: Tensor, level: int, frames: int) -> Tensor:
        """F_S = T_i(z_i) + z_i of level i, counted from 1 at the size of the image: z (B*T, C, H, W) -> same shape.

        Raises:
            ValueError: frames that are not whole clips.
        """
        if len(z) % frames:
            raise ValueError(f"Found {len(z)} frames, expected a multiple of the clip's length, {frames}.")
        return self.levels[level - 1](z, frames)

    @torch.no_grad()
    def start_as_image_decoder(self) -> None:
        """Change nothing before training: no compensation, no correction."""
        for module in self.levels:
            module.start_silent()  # type: ignore[operator]
        for parameter in self.refine.conv_out.parameters():
            parameter.zero_()


def around(chosen: range, frames: int, total: int) -> range:
    """Frames of a clip and so many more at either side, as far as the clip of `total` frames has them."""
    return range(max(0, chosen.start - frames), min(total, chosen.stop + frames))


class TemporalDecoder:
    """An image decoder whose frames see each other, with a network of compensation and refinement around it."""

    def __init__(self, network: TemporalVAE, decode: Callable[[Tensor], Tensor], places: Sequence[nn.Module]) -> None:
        """Around a decoder that stays as it is.

        Args:
            network: what is added.
            decode: latents of frames (N, Z, h, w) -> frames (N, 3, H, W) in -1..1.
            places: layers in it that give z_M to z_1, in this order: (N, C, H', W'), or (N, C, 1, H', W').

        Raises:
            ValueError: as many places as the network has levels are expected.
        """
        if len(places) != len(network.levels):
            raise ValueError(f"The decoder has {len(places)} levels, expected {len(network.levels)}.")
        self.network, self.decode, self.places = network, decode, places

    def __call__(self, latents: Tensor, chosen: range | None = None, features: list[Tensor] | None = None) -> Tensor:
        """Frames as they are when the whole clip is decoded (Eq. 12 and 13), by default all of it.

        Args:
            latents: (B, Z, T, h, w).
            chosen: frames that are wanted; only what they see of the others is computed.
            features: a list that gets the compensated features F_S of all levels, M to 1, (B*T', C, H', W').

        Returns:
            (B, 3, frames that were chosen, H, W) in -1..1.
        """
        total = latents.shape[2]
        chosen = range(total) if chosen is None else chosen
        given = around(chosen, REACH * len(self.places), total)
        rows = latents[:, :, given.start : given.stop].transpose(1, 2).flatten(0, 1)
        with self._compensated(chosen, total, features):
            images = self.decode(rows)
        return self.network.refine(images).unflatten(0, (len(latents), -1)).transpose(1, 2)

    @contextmanager
    def _compensated(self, chosen: range, total: int, features: list[Tensor] | None) -> Iterator[None]:
        """Hooks behind the places, while it is open; each hands on no more frames than are needed from there."""

        def behind(level: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
            seen, needed = (around(chosen, REACH * count, total) for count in (level, level - 1))
            kept = slice(needed.start - seen.start, needed.stop - seen.start)

            def compensate(module: nn.Module, inputs: object, z: Tensor) -> Tensor:
                pictures = z.flatten(2, 3) if z.ndim == 5 else z  # one frame each
                out = self.network.compensate(pictures, level, len(seen))
                if features is not None:
                    features.append(out)
                return out.unflatten(0, (-1, len(seen)))[:, kept].flatten(0, 1).reshape(-1, *z.shape[1:])

            return compensate

        levels = range(len(self.places), 0, -1)
        hooks = [place.register_forward_hook(behind(level)) for place, level in zip(self.places, levels, strict=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
