"""Steps of a video model's training on pictures: single frames of its clips, or pictures of their own.

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .config import HiGenRecipe, VersVideoRecipe
from .data.clips import alike
from .data.folder import PictureClips
from .distributed import drawn, noise_like
from .higen_settings import Pictures
from .latents import FrameFeatures, Latents, encode_clips
from .sections import FolderData, MovingShapesData
from .task import Batch, Losses
from .text_to_video_task import TextToVideoTask


@dataclass(frozen=True)
class PictureSet:
    """Pictures that are no frames of clips: their latents, of one frame each, and captions as tokens (pictures, N)."""

    latents: Latents
    tokens: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Moments (B, Z, 1, H, W) twice and tokens (B, N) of pictures of one size, by torch's random state."""
        chosen = drawn(lambda rows: torch.randint(len(self.latents), (rows,)), count)
        numbers = alike(chosen.tolist(), self.latents.borders())
        return *self.latents.take(numbers), self.tokens[numbers]


class PictureTask(TextToVideoTask):
    """The loss on clips, and in the recipe's share of the steps on pictures, which have no cues."""

    recipe: HiGenRecipe | VersVideoRecipe

    def __init__(
        self,
        recipe: HiGenRecipe | VersVideoRecipe,
        folder: Path,
        device: torch.device,
        mixed: bool,
        frame_features: FrameFeatures | None = None,
    ) -> None:
        super().__init__(recipe, folder, device, mixed, frame_features)
        self.picture_set = self._open_pictures() if recipe.pictures.path else None

    def losses(self, batch: Batch, step: int) -> Losses:
        """Those of clips, or of pictures: as many for each clip of the batch as the recipe says."""
        settings = self.recipe.pictures
        if not shows_pictures(settings, step):
            return super().losses(batch, step)
        mean, logvar, tokens, *_ = batch
        if self.picture_set is not None:
            pictures = self.picture_set.draw(len(mean) * settings.per_clip)
            mean, logvar, tokens = (part.to(self.device) for part in pictures)
            return self._objective(self._sample(mean, logvar, noise_like(mean)), tokens)
        latents = self._sample(mean, logvar, noise_like(mean))
        return self._objective(drawn_pictures(settings, latents), tokens.repeat_interleave(settings.per_clip, dim=0))

    def _preference(self, latents: Tensor, tokens: Tensor, **cues: Tensor) -> Tensor | None:
        pictures = latents.shape[2] == 1  # which show no direction
        return None if pictures else super()._preference(latents, tokens, **cues)

    def _open_pictures(self) -> PictureSet:
        recipe, data, cache = self.recipe, self.recipe.data, self._cache
        assert cache is not None
        pictures = FolderData(
            path=recipe.pictures.path,
            frames=1,
            held_out=0,
            size=data.size,
            width=None if isinstance(data, MovingShapesData) else data.width,
            height=None if isinstance(data, MovingShapesData) else data.height,
            buckets=data.buckets if isinstance(data, FolderData) else None,
        )
        clips = PictureClips(pictures, "train")
        latents = encode_clips(
            self.autoencoder, clips.settings, clips, "train", len(clips), cache, self.device, self._mixed
        )
        return PictureSet(latents, self._tokens_of(latents.captions))


def shows_pictures(settings: Pictures, step: int) -> bool:
    """Whether a step is on pictures: spread evenly, in their share, from their start on."""
    return step >= settings.start and int((step + 1) * settings.share) != int(step * settings.share)


def drawn_pictures(settings: Pictures, latents: Tensor) -> Tensor:
    """Frames drawn from around the middle of clips (B, Z, T, H, W) -> (B * per_clip, Z, 1, H, W), clip by clip."""
    middle, reach = latents.shape[2] // 2, round(settings.spread * latents.shape[2] / 2)
    first, end = max(0, middle - reach), min(latents.shape[2], middle + max(1, reach))
    frames = drawn(
        lambda rows: torch.randint(first, end, (rows, settings.per_clip), device=latents.device), len(latents)
    )
    clips = torch.arange(len(latents), device=latents.device)[:, None]
    return latents.transpose(1, 2)[clips, frames].flatten(0, 1)[:, :, None]
