"""Training LVDM's models of long videos: a mask says which latents are given (section 3.3, arXiv 2211.13221).

Shapes: B clips, Z latent channels, T latents of a sample, H, W latent size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.networks.lvdm import LatentVideoUNet
from ..kernels.sampling.schedules import add_noise
from .config import MaskRecipe
from .distributed import called, drawn
from .first_stage import latent_layout
from .latents import FrameFeatures, Latents
from .mask_settings import LatentWindow, Masks
from .operations import TrainingOperations
from .settings import RecipeError
from .task import Batch, Losses
from .text import NoText, TextEncoder
from .text_to_video_task import TextToVideoTask, initialize_denoiser


class MaskTask(TextToVideoTask):
    """Error of the predicted noise, that of given latents included, as released."""

    recipe: MaskRecipe

    def __init__(
        self,
        recipe: MaskRecipe,
        folder: Path,
        device: torch.device,
        mixed: bool,
        frame_features: FrameFeatures | None = None,
    ) -> None:
        super().__init__(recipe, folder, device, mixed, frame_features)
        # Validated on the same samples every time.
        self.held_out_latents = first_windows(self.held_out_latents, recipe.latents)

    def losses(self, batch: Batch, step: int) -> Losses:
        """Mean error over a sample of each clip's latents."""
        mean, logvar, tokens = batch
        places = drawn_window(mean.shape[2], self.recipe.latents)
        return super().losses((mean[:, :, places], logvar[:, :, places], tokens), step)

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        """What is given: mask (B, 1, T, H, W), level of its noise (B,), that noise; the same in every validation."""
        generator = None if step is not None else torch.Generator().manual_seed(0)
        settings, count = self.recipe.masks, len(latents)
        draw = drawn if step is not None else called  # every process validates on all clips
        mask = draw(lambda rows: drawn_masks(settings, rows, latents.shape[2], generator), count).to(latents)
        level = draw(lambda rows: torch.randint(max(1, settings.levels), (rows,), generator=generator), count)
        fresh = draw(lambda rows: torch.randn(rows, *latents.shape[1:], generator=generator), count)
        mask = mask.view(count, 1, -1, 1, 1).expand(-1, -1, -1, *latents.shape[3:])
        return {"mask": mask, "level": level.to(self.device), "given_noise": fresh.to(latents)}

    def _loss(
        self,
        networks: dict[str, nn.Module],
        latents: Tensor,
        tokens: Tensor,
        times: Tensor,
        noise: Tensor,
        **cues: Tensor,
    ) -> Tensor:
        """Error per clip (B,) of the noise that each latent has: given ones have their own."""
        mask, level, given_noise = cues["mask"], cues["level"], cues["given_noise"]
        perturbed = self.recipe.masks.levels > 0
        shown = add_noise(self.schedule, latents, level, given_noise) if perturbed else latents
        noisy = add_noise(self.schedule, latents, times, noise) * (1 - mask) + shown * mask
        told = {"noise_level": level} if perturbed else {}
        # A model of short videos is told nothing: no latent is given to it.
        seen = torch.cat([noisy, mask], dim=1) if self.recipe.masked else noisy
        predicted = networks[self.role](seen, times, **told).float()
        # Clean given latents have no noise that could be predicted.
        target = noise * (1 - mask) + (given_noise * mask if perturbed else 0)
        error = (predicted - target).abs() if self.recipe.masks.error == "l1" else (predicted - target).square()
        return error.mean(dim=(1, 2, 3, 4))

    def _build_network(self) -> nn.Module:
        network = LatentVideoUNet(self.recipe.network, operations=TrainingOperations)
        initialize_denoiser(network, self.recipe.initialization)
        return network

    def _network_channels(self) -> tuple[str, int]:
        return "network.out_channels", self.recipe.network.out_channels

    def _check_latents(self) -> None:
        super()._check_latents()
        frames, span = self.recipe.data.frames, self.recipe.latents.span
        _, (factor, *_) = latent_layout(self.autoencoder)
        if frames < span * factor:
            raise RecipeError(
                f"data.frames: found {frames}, expected at least {span * factor}: a sample spans {span} latents"
            )

    def _open_text(self, captions: list[str]) -> TextEncoder:
        return NoText()

    def _check_captions(self, captions: list[str]) -> None:
        pass

    def _check_width(self, text_width: int) -> None:
        pass


def drawn_window(latents: int, window: LatentWindow, begin: int | None = None) -> list[int]:
    """Places of a sample among the latents of a clip."""
    if begin is None:
        begin = int(torch.randint(latents - window.span + 1, ()))
    return list(range(begin, begin + window.span, window.every))


def first_windows(latents: Latents, window: LatentWindow) -> Latents:
    """The sample at the start of every clip."""
    if not len(latents):
        return latents
    places = drawn_window(latents.shards[0].mean.shape[2], window, 0)
    return Latents(
        [shard._replace(mean=shard.mean[:, :, places], logvar=shard.logvar[:, :, places]) for shard in latents.shards]
    )


def drawn_masks(settings: Masks, count: int, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Which latents of each sample are given, (count, length): its ends, its first ones, or none."""
    chance = torch.rand(count, 1, generator=generator)
    counts = torch.tensor(settings.counts)[torch.randint(len(settings.counts), (count,), generator=generator)]
    places = torch.arange(length)
    ends = (places == 0) | (places == length - 1)
    first = places < counts[:, None]
    return torch.where(chance < settings.ends, ends, first & (chance < settings.ends + settings.first)).float()
