"""Training VersVideo's denoiser: videos and pictures, mixtures of experts that exchange after every step (section 3.2).

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.layers.excitation import MultiExcitation
from ..kernels.layers.experts import ExpertFeedForward, exchange_experts
from ..kernels.networks.versvideo import ExcitedResidual, VersVideoUNet
from ..model_loaders.files import read_tensors
from ..model_loaders.versvideo import start_from_image_model
from . import checkpoints
from .config import VersVideoRecipe
from .distributed import noise_like
from .first_stage import latent_layout
from .operations import TrainingOperations
from .pictures import drawn_pictures, shows_pictures
from .settings import RecipeError
from .task import Batch, Losses
from .text_to_video_task import TextToVideoTask, initialize_denoiser


class VersVideoTask(TextToVideoTask):
    """Squared error of the velocity on clips, and in a share of the steps on single frames."""

    recipe: VersVideoRecipe
    unet: VersVideoUNet

    def __init__(self, recipe: VersVideoRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed)
        source = recipe.initialization.image_model
        if source and not checkpoints.exist(folder):
            tensors, _ = read_tensors(Path(source))
            start_from_image_model(self.unet, tensors, Path(source).name)

    def losses(self, batch: Batch, step: int) -> Losses:
        """Those of clips, or of single frames."""
        if not shows_pictures(self.recipe.pictures, step):
            return super().losses(batch, step)
        mean, logvar, tokens, *_ = batch
        latents = self._sample(mean, logvar, noise_like(mean))
        pictures = drawn_pictures(self.recipe.pictures, latents)
        return self._objective(pictures, tokens.repeat_interleave(self.recipe.pictures.per_clip, dim=0))

    def after_step(self) -> None:
        """Experts come closer to each other (Eq. 7)."""
        exchange_experts(self.unet, self.recipe.exchange)

    def _preference(self, latents: Tensor, tokens: Tensor, **cues: Tensor) -> Tensor | None:
        pictures = latents.shape[2] == 1  # which show no direction
        return None if pictures else super()._preference(latents, tokens, **cues)

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
