"""Image models in Stable Diffusion's layout, opened to be moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..kernels.sampling.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class ImageModel:
    """A frozen image model: its UNet, and latents z = scale * (a + shift)."""

    unet: UNet2DConditionModel
    schedule: NoiseSchedule
    scale: float
    shift: float


def open_image_model(path: Path) -> ImageModel:
    """The image model of a folder in diffusers' layout."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(path / "unet", local_files_only=True)
    return ImageModel(unet.eval().requires_grad_(False), NoiseSchedule(0.00085, 0.012), 0.18215, 0.0)
