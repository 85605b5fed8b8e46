"""Training VersVideo's denoiser: videos and pictures, mixtures of experts that exchange after every step (section 3.2).

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..kernels.layers.excitation import MultiExcitation
from ..kernels.layers.experts import ExpertFeedForward, exchange_experts
from ..kernels.networks.versvideo import ExcitedResidual, VersVideoUNet
from ..model_loaders.files import read_tensors
from ..model_loaders.versvideo import start_from_image_model
from . import checkpoints
from .config import VersVideoRecipe
from .first_stage import latent_layout
from .operations import TrainingOperations
from .pictures import PictureTask
from .settings import RecipeError
from .text_to_video_task import initialize_denoiser


class VersVideoTask(PictureTask):
    """Squared error of the velocity on clips, and in a share of the steps on single frames."""

    recipe: VersVideoRecipe
    unet: VersVideoUNet

    def __init__(self, recipe: VersVideoRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed)
        source = recipe.initialization.image_model
        if source and not checkpoints.exist(folder):
            tensors, _ = read_tensors(Path(source))
            start_from_image_model(self.unet, tensors, Path(source).name)

    def after_step(self) -> None:
        """Experts come closer to each other (Eq. 7)."""
        exchange_experts(self.unet, self.recipe.exchange)

    def _build_network(self) -> nn.Module:
        network = VersVideoUNet(self.recipe.network, operations=TrainingOperations)
        initialize_denoiser(network, self.recipe.initialization)
        start_versvideo(network)
        return network

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (frames, *_) = latent_layout(self.autoencoder)
        if frames != 1:
            raise RecipeError(f"autoencoder: has one latent for {frames} frames, VersVideo needs one for each")


@torch.no_grad()
def start_versvideo(network: VersVideoUNet) -> None:
    """Residual branches without effect, frames that do not see each other by convolutions, and experts that are alike.

    Experts that differ from the start would be averaged to something that none of them is.
    """
    for module in network.modules():
        if isinstance(module, MultiExcitation):
            module.start_as_image_layer()
        elif isinstance(module, ExpertFeedForward):
            first = module.experts[0].state_dict()
            for expert in module.experts[1:]:
                expert.load_state_dict(first)
    for module in network.modules():
        if isinstance(module, ExcitedResidual):
            for parameter in module.conv2.spatial.parameters():
                parameter.zero_()
