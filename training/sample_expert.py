"""Show-1's expert translation by a trained expert, without ComfyUI (arXiv 2309.15818, section 3.4).

Shapes: B videos, C colours or channels, T frames, H, W pixels; pixels in -1..1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..kernels.networks.higen import SpaceTimeUNet
from ..kernels.networks.video_autoencoder import VideoAutoencoder
from ..kernels.sampling.cascade import resized
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER, VAE
from .config import ExpertRecipe
from .export import Trained
from .sections import frame_size
from .settings import InputError
from .walk import walk

EXPERT = "expert"
"""Name of the stage."""
STRENGTH = 0.8
"""Share of the walk that is done, as released."""
ENLARGING = 2
"""By which an expert alone enlarges held-out clips; the release does so by 2 and 2.25."""


class TrainedExpert:
    """The last stage: its recipe, its network, autoencoder and text encoder."""

    name = EXPERT

    def __init__(self, source: Path, device: torch.device) -> None:
        trained = Trained(source)
        if not isinstance(trained.recipe, ExpertRecipe):
            raise InputError(f"{source}: a run of {trained.recipe.task}, expected {EXPERT}")
        if not {VAE, TEXT_ENCODER} <= set(trained.networks):
            raise InputError(f"{source}: its autoencoder or text encoder is not its own; sample with ComfyUI")
        self.recipe = trained.recipe
        network, autoencoder = (trained.networks[role].to(device) for role in (MODEL, VAE))
        assert isinstance(network, SpaceTimeUNet) and isinstance(autoencoder, VideoAutoencoder)
        self.network, self.autoencoder = network, autoencoder
        self.text_encoder = trained.networks[TEXT_ENCODER].to(device)
        self.scale, self.shift = trained.facts["scale"], trained.facts["shift"]
        self.schedule = trained.recipe.schedule.noise_schedule()
        self.size = frame_size(trained.recipe.data)

    def sample(self, video: Tensor, text: Tensor, generator: torch.Generator, steps: int, guidance: float) -> Tensor:
        """Small videos (B, 3, T, h, w) and text (2B, N, D), without words last -> videos (B, 3, T, H, W)."""
        latents = self.scale * (self.autoencoder.encode(self.enlarged(video)) + self.shift)
        noise = torch.randn(latents.shape, generator=generator).to(latents)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = self.network(noisy.repeat(2, 1, 1, 1, 1), times, text)
            return predicted

        made = walk(predict, self.schedule, noise, steps, guidance, start=(latents, STRENGTH))
        return self.autoencoder.decode(made / self.scale - self.shift)

    def enlarged(self, video: Tensor) -> Tensor:
        """(B, 3, T, h, w) -> (B, 3, T, H, W), as ComfyUI's node is given it: whole levels, bicubic."""
        height, width = self.size
        pictures = [resized(clip.movedim(0, -1) * 0.5 + 0.5, width, height) for clip in video]
        return (torch.stack(pictures).movedim(-1, 1) * 2 - 1).to(video)
