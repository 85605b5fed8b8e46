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
from .features_task import FeaturesTask
from .harivo_task import HarivoTask
from .higen_task import HiGenTask
from .image_task import ImageTask
from .mask_task import MaskTask
from .settings import RecipeError
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
    state = checkpoints.read(path)
    recipe = read_recipe(state["recipe"], str(path))
    trainer = Trainer(recipe, build_task(recipe, folder, device), folder, device)
    trainer.restore(state)
    return trainer
