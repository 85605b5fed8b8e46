"""Making tasks and trainers from recipes and run folders."""

from __future__ import annotations

from pathlib import Path

import torch

from . import checkpoints
from .autoencoder_task import AutoencoderTask
from .config import (
    AutoencoderRecipe,
    ControlRecipe,
    FeaturesRecipe,
    HarivoRecipe,
    HiGenRecipe,
    ImageRecipe,
    MaskRecipe,
    Recipe,
    Show1Recipe,
    TemporalVAERecipe,
    VersVideoControlRecipe,
    VersVideoRecipe,
    read_recipe,
)
from .control_task import ControlTask
from .distributed import leaves
from .features_task import FeaturesTask
from .harivo_task import HarivoTask
from .higen_task import HiGenTask
from .image_task import ImageTask
from .mask_task import MaskTask
from .settings import RecipeError, to_table
from .show1_task import Show1Task
from .task import Task
from .temporal_vae_task import TemporalVAETask
from .text_to_video_task import TextToVideoTask
from .trainer import Trainer, seed_everything, uses_bf16
from .versvideo_control_task import VersVideoControlTask
from .versvideo_task import VersVideoTask


def build_task(recipe: Recipe, folder: Path, device: torch.device) -> Task:
    """The task of a recipe; what it computes once (latents) is kept in the run folder."""
    if isinstance(recipe, AutoencoderRecipe):
        return AutoencoderTask(recipe, device)
    if isinstance(recipe, TemporalVAERecipe):
        return TemporalVAETask(recipe, folder, device)
    if isinstance(recipe, FeaturesRecipe):
        return FeaturesTask(recipe, device)
    mixed = uses_bf16(recipe.run.precision, device)
    if isinstance(recipe, HiGenRecipe):
        return HiGenTask(recipe, folder, device, mixed)
    if isinstance(recipe, VersVideoRecipe):
        return VersVideoTask(recipe, folder, device, mixed)
    if isinstance(recipe, VersVideoControlRecipe):
        return VersVideoControlTask(recipe, folder, device, mixed)
    if isinstance(recipe, HarivoRecipe):
        return HarivoTask(recipe, folder, device, mixed)
    if isinstance(recipe, ControlRecipe):
        return ControlTask(recipe, folder, device, mixed)
    if isinstance(recipe, ImageRecipe):
        return ImageTask(recipe, folder, device, mixed)
    if isinstance(recipe, MaskRecipe):
        return MaskTask(recipe, folder, device, mixed)
    if isinstance(recipe, Show1Recipe):
        return Show1Task(recipe, folder, device, mixed)
    return TextToVideoTask(recipe, folder, device, mixed)


def start(recipe: Recipe, folder: Path, device: torch.device) -> Trainer:
    """A trainer at step 0; raises RecipeError when the folder already holds a run."""
    if checkpoints.exist(folder):
        raise RecipeError(f"{folder}: already holds a run; resume it, or choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(recipe.seed)
    return Trainer(recipe, build_task(recipe, folder, device), folder, device)


def resume(folder: Path, device: torch.device) -> Trainer:
    """A trainer that continues from the newest checkpoint of a run folder."""
    path = checkpoints.newest(folder)
    recipe = recipe_of(path)
    trainer = Trainer(recipe, build_task(recipe, folder, device), folder, device)
    trainer.restore(checkpoints.read(path, trainer.shared_out_tensors()))
    return trainer


def start_or_resume(recipe: Recipe, folder: Path, device: torch.device) -> Trainer:
    """Go on with what the folder holds, or start there; raises RecipeError when it is a run of another recipe."""
    if not checkpoints.exist(folder):
        return start(recipe, folder, device)
    found, expected = (dict(leaves(to_table(each))) for each in (recipe_of(checkpoints.newest(folder)), recipe))
    for keys in dict.fromkeys((*found, *expected)):
        if found.get(keys) != expected.get(keys):
            raise RecipeError(
                f"{'.'.join(map(str, keys))}: the run in {folder} has {found.get(keys)!r}, the recipe "
                f"{expected.get(keys)!r}; expected the same to go on with it, or another folder"
            )
    return resume(folder, device)


def recipe_of(path: Path) -> Recipe:
    """The recipe of a checkpoint."""
    return read_recipe(checkpoints.read_plain(path)["recipe"], str(path))
