"""Networks of finished runs and of model files, as the trainer builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from ..kernels.sampling.schedules import NoiseSchedule
from ..model_loaders.checkpoint import read
from .config import DiffusionRecipe
from .export import Trained
from .image_unet import network_of
from .settings import InputError, Table


@dataclass(frozen=True)
class Opened:
    """Frozen networks by role, the facts of the latents that the denoiser works on, and its noise schedule."""

    networks: Mapping[str, nn.Module]
    facts: Table
    schedule: NoiseSchedule


def open_networks(path: Path) -> Opened:
    """Read a run folder, one of its checkpoints (averaged weights) or a model file.

    Raises InputError when the path is missing or a run trains no denoiser, CheckpointError for unusable model files.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist, expected a run folder, checkpoint or bundle")
    if path.is_dir() or path.suffix == ".pt":
        trained = Trained(path)
        if not isinstance(trained.recipe, DiffusionRecipe):
            raise InputError(f"{path}: a run of {trained.recipe.task}, expected one of a denoiser")
        return Opened(trained.networks, trained.facts, trained.recipe.schedule.noise_schedule())
    checkpoint = read(path)
    networks = {role: network_of(component, path.name) for role, component in checkpoint.components.items()}
    for network in networks.values():
        network.eval().requires_grad_(False)
    facts = {name: value for name, value in asdict(checkpoint.latent).items() if name != "channels"}
    return Opened(networks, facts, checkpoint.schedule)
