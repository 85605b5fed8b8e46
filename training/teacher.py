"""A trained HiGen whose spatial reasoning teaches an image model.

Between its prediction and the noise of a picture lies all that caption and noisy picture leave open. Without that, what
a word does shows in a hundredth of the pictures.

Shapes: B pictures, N tokens, Z latent channels, H, W latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from ..kernels.networks.higen import HiGenUNet
from ..kernels.sampling.schedules import NoiseSchedule, add_noise, denoised_of, sigma_of
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from .data.captions import SHAPES
from .image_settings import PictureTeacher
from .opened import open_networks
from .settings import RecipeError

KEY = "teacher.path"


class Teacher:
    """Predicts pictures from the noise and the captions that an image model sees."""

    def __init__(
        self, settings: PictureTeacher, schedule: NoiseSchedule, text: CaptionEncoderConfig, device: torch.device
    ) -> None:
        """Raises RecipeError when the file holds no HiGen that reads captions of this length."""
        opened = open_networks(Path(settings.path))
        unet, encoder = opened.networks.get(MODEL), opened.networks.get(TEXT_ENCODER)
        if not isinstance(unet, HiGenUNet) or not isinstance(encoder, CaptionEncoder):
            found = ", ".join(type(network).__name__ for network in opened.networks.values()) or "nothing"
            raise RecipeError(f"{KEY}: {settings.path} holds {found}, expected a HiGenUNet and its CaptionEncoder")
        if encoder.config.max_tokens != text.max_tokens:
            raise RecipeError(
                f"{KEY}: {settings.path} reads {encoder.config.max_tokens} tokens, the recipe's text encoder "
                f"{text.max_tokens}; expected the same"
            )
        self.unet, self.encoder = unet.to(device), encoder.to(device)
        self.schedule, self.own_schedule = opened.schedule, schedule
        self.scale, self.shift = opened.facts["scale"], opened.facts["shift"]
        # Times of the same noise, each under the teacher's own number.
        own, theirs = schedule.alphas_cumprod().logit(), opened.schedule.alphas_cumprod().clamp(1e-9).logit()
        self.times = (own[:, None] - theirs).abs().argmin(dim=1).to(device)
        numbers = {term: number for number, term in enumerate(encoder.config.tokens)}
        self.words = torch.tensor([numbers.get(term, -1) for term in text.tokens], device=device)
        """Its number of each word of the image model; -1 for those that it does not know."""
        self.moves = text.tokens.index("moves")
        self.shapes = torch.tensor([text.tokens.index(shape) for shape in SHAPES], device=device)

    def knows(self, tokens: Tensor) -> Tensor:
        """Whether captions (B, N) are those of clips, which alone it has read, in words that it knows; (B,)."""
        return (tokens == self.moves).any(dim=1) & (self.words[tokens] >= 0).all(dim=1)

    def with_other_shapes(self, tokens: Tensor) -> Tensor:
        """Captions (B, N) in which each shape has become the next or the one after it."""
        count = len(self.shapes)
        by = torch.randint(1, count, (len(tokens), 1), device=tokens.device)
        which = (tokens[..., None] == self.shapes).long()
        other = self.shapes[(which.argmax(dim=2) + by) % count]
        return torch.where(which.any(dim=2), other, tokens)

    @torch.no_grad()
    def clean(self, latents: Tensor, times: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
        """Predicted pictures (B, Z, 1, H, W), as the autoencoder has them.

        Args:
            latents: the true ones, as the autoencoder has them: they are noised as the teacher scales them.
            times, noise, tokens: of the image model.
        """
        numbers = self.times[times]
        scaled = (latents + self.shift) * self.scale
        predicted = self.unet(
            add_noise(self.schedule, scaled, numbers, noise), numbers, self.encoder(self.words[tokens])
        )
        sigma = sigma_of(self.schedule.alphas_cumprod().to(scaled)[numbers]).view(-1, *[1] * (scaled.ndim - 1))
        return denoised_of(self.schedule, scaled + sigma * noise, sigma, predicted) / self.scale - self.shift
