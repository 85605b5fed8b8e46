"""Training an image model in Stable Diffusion's layout: single frames of clips, whose motion captions cannot mean.

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import ImageRecipe
from .first_stage import latent_layout
from .image_unet import ImageUNet, start_image_unet
from .settings import RecipeError, Table
from .task import Batch, Losses
from .text_to_video_task import TextToVideoTask


class ImageTask(TextToVideoTask):
    """The loss of text to video on one frame of each clip, another one every time."""

    recipe: ImageRecipe

    def losses(self, batch: Batch, step: int) -> Losses:
        """Weighted mean squared error of the noise."""
        return super().losses(single_frames(batch), step)

    def _build_network(self) -> nn.Module:
        network = ImageUNet(self.recipe.network)
        start_image_unet(network, self.recipe.initialization.text_gain)
        return network

    def _measure(self) -> Table:
        return {**super()._measure(), "dimensions": 2}

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (frames, *_) = latent_layout(self.autoencoder)
        if frames != 1:
            raise RecipeError(f"autoencoder: has one latent for {frames} frames, pictures need one for each")


def single_frames(batch: Batch) -> Batch:
    """A batch of one random frame of each clip; what it holds beside latents and tokens is of frames, (B, T, D)."""
    mean, logvar, tokens, *extras = batch
    clips = torch.arange(len(mean), device=mean.device)
    frames = torch.randint(mean.shape[2], (len(mean),), device=mean.device)
    mean, logvar = (part.transpose(1, 2)[clips, frames][:, :, None] for part in (mean, logvar))
    return mean, logvar, tokens, *(extra[clips, frames][:, None] for extra in extras)
