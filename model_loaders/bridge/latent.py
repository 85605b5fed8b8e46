"""Latent formats: scale, sizes and live previews of latents (B, C, T, H, W), and of pictures (B, C, H, W)."""

import math

import torch
from torch import Tensor

from ..checkpoint import LatentSpec
from .compat import latent_formats, model_management


class DescribedLatentFormat(latent_formats.LatentFormat):
    """A latent format made of a `LatentSpec`, of pictures."""

    latent_dimensions = 2

    def __init__(self, spec: LatentSpec) -> None:
        self.spec = spec
        self.scale_factor = spec.scale
        self.latent_channels = spec.channels
        self.spacial_downscale_ratio = spec.spatial
        self.temporal_downscale_ratio = spec.temporal
        self.latent_rgb_factors, self.latent_rgb_factors_bias = _preview_colours(spec)

    def process_in(self, latent: Tensor) -> Tensor:
        """Autoencoder space -> diffusion space."""
        return (latent + self.spec.shift) * self.spec.scale

    def process_out(self, latent: Tensor) -> Tensor:
        """Diffusion space -> autoencoder space."""
        return latent / self.spec.scale - self.spec.shift


class VideoLatentFormat(DescribedLatentFormat):
    """The same of videos; the preview shows all frames as a contact sheet."""

    latent_dimensions = 3

    def __init__(self, spec: LatentSpec, fewest: int = 2) -> None:
        """`fewest`: latents along time that the model takes; single ones come from nodes for images by mistake."""
        super().__init__(spec)
        self.fewest = fewest
        self.latent_rgb_factors_reshape = contact_sheet


def contact_sheet(latent: Tensor) -> Tensor:
    """First video of (B, C, T, H, W) -> (1, C, rows * H, columns * W), frames in reading order, about square."""
    if latent.ndim != 5:
        return latent
    _, channels, frames, height, width = latent.shape
    columns = max(1, math.ceil(math.sqrt(frames * height / width)))
    rows = math.ceil(frames / columns)
    columns = math.ceil(frames / rows)  # leaves no column empty
    sheet = latent.new_zeros(channels, rows * columns, height, width)
    sheet[:, :frames] = latent[0]
    grid = sheet.view(channels, rows, columns, height, width).transpose(2, 3)
    return grid.reshape(1, channels, rows * height, columns * width)


def _preview_colours(spec: LatentSpec) -> tuple[list[list[float]], list[float] | None]:
    if spec.rgb_factors is not None:
        bias = None if spec.rgb_bias is None else list(spec.rgb_bias)
        return [list(row) for row in spec.rgb_factors], bias
    if spec.channels == 4 and spec.temporal == 1:
        return latent_formats.SD15().latent_rgb_factors, None
    # Without a fitted map, the first three channels show shape and motion.
    return [[float(channel == colour) for colour in range(3)] for channel in range(spec.channels)], None


def empty_latent(
    latent_format: latent_formats.LatentFormat, width: int, height: int, frames: int, batch_size: int
) -> dict[str, object]:
    """A LATENT of zeros for a model, with the ratios that let ComfyUI convert it for another model.

    Args:
        latent_format: of the model.
        width, height: in pixels.
        frames: in frames.
        batch_size: videos.

    Raises:
        ValueError: the model makes images, or cannot take the size; the nearest sizes are named.
    """
    if latent_format.latent_dimensions != 3:
        raise ValueError(
            "This model makes images, its latents have no time axis: use the core node Empty Latent Image."
        )
    spatial, temporal = latent_format.spacial_downscale_ratio, latent_format.temporal_downscale_ratio
    _check_size("width", width, spatial, 0)
    _check_size("height", height, spatial, 0)
    length = latents_of(latent_format, "frames", frames)
    if isinstance(latent_format, VideoLatentFormat) and frames // temporal < latent_format.fewest:
        raise ValueError(
            f"frames is {frames}, this model makes videos of at least {latent_format.fewest * temporal}: choose "
            f"{latent_format.fewest * temporal} or more."
        )
    shape = (batch_size, latent_format.latent_channels, length, height // spatial, width // spatial)
    samples = torch.zeros(shape, device=model_management.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": spatial, "downscale_ratio_temporal": temporal}


def first_frames(latent_format: latent_formats.LatentFormat) -> int:
    """Frames of a latent before the first full one: the core's causal video models keep one for the first frame alone.

    Ours cover as many frames with every latent.
    """
    return int(latent_format.temporal_downscale_ratio > 1 and not isinstance(latent_format, VideoLatentFormat))


def latents_of(latent_format: latent_formats.LatentFormat, name: str, frames: int) -> int:
    """Latents along time of a number of frames, which is called `name`.

    Raises:
        ValueError: the model cannot make this number; the nearest ones are named.
    """
    factor, first = latent_format.temporal_downscale_ratio, first_frames(latent_format)
    _check_size(name, frames, factor, first)
    return (frames - first) // factor + first


def frames_of(latent_format: latent_formats.LatentFormat, latents: int) -> int:
    """Frames of a number of latents along time, or the first frame of the one with this number."""
    first = first_frames(latent_format)
    return (latents - first) * latent_format.temporal_downscale_ratio + first if latents else 0


def shared_latents(latent_format: latent_formats.LatentFormat, name: str, frames: int) -> int:
    """Latents in the middle of a video of a number of frames, which is called `name`.

    Raises:
        ValueError: it is no multiple of the frames of a latent; the nearest ones are named.
    """
    _check_size(name, frames, latent_format.temporal_downscale_ratio, 0)
    return frames // latent_format.temporal_downscale_ratio


def _check_size(name: str, size: int, factor: int, offset: int) -> None:
    if (size - offset) % factor == 0 and size >= max(1, offset):
        return
    below = (size - offset) // factor * factor + offset
    near = [str(value) for value in (below, below + factor) if value > 0]
    rule = f"multiples of {factor}" + (f" plus {offset}" if offset else "")
    raise ValueError(f"{name} is {size}, this model takes {rule}: choose {' or '.join(near)}.")
