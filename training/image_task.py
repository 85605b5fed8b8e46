"""Training an image model in Stable Diffusion's layout: single frames of clips, whose motion captions cannot mean.

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.sampling.schedules import add_noise
from .config import ImageRecipe
from .data.captions import PLACE_WORDS, with_other_shapes
from .data.clips import Clips
from .data.moving_shapes import MovingShapes
from .distributed import drawn, gathered, noise_like, own
from .first_stage import latent_layout
from .image_unet import ImageUNet, start_image_unet
from .preference import OtherCaptions, OtherPictures
from .settings import RecipeError, Table
from .task import Batch, Losses
from .teacher import Teacher, familiar_clips, open_teacher
from .text import FrozenCaptions, TextEncoder
from .text_to_video_task import TextToVideoTask


class ImageTask(TextToVideoTask):
    """The loss of text to video on one frame of each clip, another one every time."""

    recipe: ImageRecipe

    _with_places: Tensor | None = None
    """Tokens of the captions that say where things are in every frame (clips, T, N), where there are such."""
    _teacher: Teacher | None = None

    def __init__(self, recipe: ImageRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed)
        captions, (channels, _) = self.train_latents.captions, latent_layout(self.autoencoder)
        self._teacher = open_teacher(
            recipe.teacher, self.schedule, channels, self.text_encoder, captions, with_other_shapes, device
        )
        if self._teacher is not None:
            self._familiar = familiar_clips(recipe.teacher, self.clips, self.clip_count)

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Moments (B, Z, T, H, W) twice, tokens (B, N), whether the teacher knows them (B,); and where captions say
        where things are, these (B, T, N)."""
        places = () if self._with_places is None else (self._with_places[indices],)
        familiar = torch.zeros(len(indices), dtype=torch.bool) if self._teacher is None else self._familiar[indices]
        return *super().batch(indices, epochs), familiar, *places

    def losses(self, batch: Batch, step: int) -> Losses:
        """Weighted mean squared error of the noise, or of what a teacher says it is."""
        mean, logvar, tokens, familiar, *places = batch
        mean, logvar, tokens, *places = single_frames((mean, logvar, tokens, *places))
        if places:
            chances = drawn(lambda rows: torch.rand(rows, 1, device=tokens.device), len(tokens))
            chosen = chances < self.recipe.captions.places
            tokens = torch.where(chosen, places[0].squeeze(1), tokens)
        if self._teacher is None:
            return super().losses((mean, logvar, tokens), step)
        latents = self._sample(mean, logvar, noise_like(mean))
        return self._taught(self._teacher, latents, tokens, familiar)

    def _taught(self, teacher: Teacher, latents: Tensor, tokens: Tensor, familiar: Tensor) -> Losses:
        """The error of the noise; of familiar pictures (B,), that of the noise that the teacher sees."""
        preference = self._preference(latents, tokens)
        tokens, taught = map(own, teacher.choose(gathered(tokens), gathered(familiar)))
        times, tokens, noise = self._draw(latents, tokens)
        target = teacher.targets(latents, times, noise, tokens, taught, self.facts)
        noisy = add_noise(self.schedule, latents, times, noise)
        predicted = self._predict(self.unet, noisy, times, self._encode_text(self.networks, tokens))
        errors = self._errors(predicted, latents, times, target)
        total = self._weighted(teacher.weights(taught) * errors, times, latents)
        metrics = {"loss": errors.mean()} | ({"taught": errors[taught].mean()} if taught.any() else {})
        losses = Losses({"denoiser": total}, metrics)
        return losses if preference is None else self._with_preference(losses, preference)

    def _open_text(self, captions: list[str]) -> TextEncoder:
        if not self.recipe.captions.places:
            return super()._open_text(captions)
        pictures = captions_with_places(self.clips, len(captions))
        text = super()._open_text(captions + pictures)
        self._with_places = tokens_with_places(pictures, len(captions), text, "captions.places")
        return text

    def _open_others(self, text: TextEncoder) -> OtherCaptions:
        return OtherPictures(text)

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


def captions_with_places(clips: Clips, count: int) -> list[str]:
    """What the frames of the first `count` clips show and where, frame after frame."""
    assert isinstance(clips, MovingShapes)
    return [caption for index in range(count) for caption in clips.picture_captions(index)]


def tokens_with_places(captions: list[str], clips: int, text: TextEncoder, key: str) -> Tensor:
    """Captions of frames as tokens (clips, T, N); RecipeError, which names the key, from a text encoder without words
    for places."""
    if isinstance(text, FrozenCaptions) and not set(PLACE_WORDS) <= set(text.config.vocabulary):
        raise RecipeError(f"{key}: the given text encoder has no words for places; expected 0 with it")
    return text.tokens(captions).unflatten(0, (clips, -1))


def single_frames(batch: Batch) -> Batch:
    """A batch of one random frame of each clip; what it holds beside latents and tokens is of frames, (B, T, D)."""
    mean, logvar, tokens, *extras = batch
    clips = torch.arange(len(mean), device=mean.device)
    frames = drawn(lambda rows: torch.randint(mean.shape[2], (rows,), device=mean.device), len(mean))
    mean, logvar = (part.transpose(1, 2)[clips, frames][:, :, None] for part in (mean, logvar))
    return mean, logvar, tokens, *(extra[clips, frames][:, None] for extra in extras)
