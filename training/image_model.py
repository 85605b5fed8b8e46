"""The frozen parts of an image model that is made to move."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..kernels.sampling.schedules import NoiseSchedule
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from ..model_loaders.scheduler import read_schedule
from .image_unet import ImageUNet
from .opened import open_networks
from .settings import InputError

STABLE_DIFFUSION = NoiseSchedule(0.00085, 0.012)
STABLE_DIFFUSION_SCALE = 0.18215


@dataclass(frozen=True)
class ImageModel:
    """Frozen parts of an image model; latents `a` of its autoencoder are z = scale * (a + shift) for the UNet.

    `unet` is diffusers' `UNet2DConditionModel`; `text_encoder` the caption encoder of our own models (the one of a
    folder in diffusers' layout stays there).
    """

    unet: nn.Module
    schedule: NoiseSchedule
    scale: float
    shift: float
    text_encoder: nn.Module | None = None


def open_image_model(path: Path) -> ImageModel:
    """Open a bundle, run folder or checkpoint of task "image", or a folder in diffusers' layout (Stable Diffusion 1.5).

    Raises InputError (CheckpointError for damaged bundles) for anything else.
    """
    if (path / "unet").is_dir():
        return _open_folder(path)
    opened = open_networks(path)
    network = opened.networks.get(MODEL)
    if not isinstance(network, ImageUNet):
        found = "no denoiser" if network is None else f"a {type(network).__name__}"
        raise InputError(f"{path}: holds {found}, expected an image model in Stable Diffusion's layout")
    scale, shift = opened.facts["scale"], opened.facts["shift"]
    return ImageModel(network.unet, opened.schedule, scale, shift, opened.networks.get(TEXT_ENCODER))


def _open_folder(path: Path) -> ImageModel:
    from diffusers import UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}/unet: diffusers cannot open it: {error}") from error
    scheduler = path / "scheduler" / "scheduler_config.json"
    said = scheduler.read_text(encoding="utf-8") if scheduler.is_file() else None
    latent = _settings(path / "vae" / "config.json")
    return ImageModel(
        unet.eval().requires_grad_(False),
        read_schedule(str(path), said, STABLE_DIFFUSION),
        float(latent.get("scaling_factor") or STABLE_DIFFUSION_SCALE),
        -float(latent.get("shift_factor") or 0.0),
    )


def _settings(path: Path) -> dict[str, float | None]:
    try:
        found: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected the settings of the autoencoder") from error
    return found
