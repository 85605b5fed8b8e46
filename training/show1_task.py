"""Training Show-1's stages on pixels: keyframes, the frames between them, their super-resolution (arXiv 2309.15818).

All are trained on the squared error of the noise (super-resolution: of the velocity). The variance that the layout has
channels for is not: videos are sampled without it, so these channels stay as they are.

A clip of the data set is what a stage makes at its frame rate and size. Keyframes are clips of every fourth frame of
those that the later stages learn from; these see a window of each clip, another one in every epoch.

Shapes: B clips, C colours, T frames of a window, H, W pixels; values in -1..1.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.networks.show1 import COLOURS, PixelUNet
from ..kernels.sampling.cascade import KEYFRAME_DISTANCE, NOISING, UPSCALING, WINDOW, between, ends_mask, enlarged
from ..kernels.sampling.schedules import add_noise
from ..model_loaders.show1 import LATENT
from .config import Show1Recipe
from .data.captions import Split
from .data.clips import Clips, stack_readable, streams_of
from .data.shards import ShardClips
from .distributed import called, drawn
from .latents import Latents
from .operations import TrainingOperations
from .settings import Table
from .show1_settings import Stage
from .task import Batch
from .text_to_video_task import TextToVideoTask, initialize_denoiser


class Show1Task(TextToVideoTask):
    """The loss of text to video on pixels, with what the stage is given beside the noisy frames."""

    recipe: Show1Recipe
    unet: PixelUNet
    train_latents: WindowedClips

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Windows (B, C, T, H, W) uint8, nothing in place of a variance, tokens (B, N)."""
        frames, numbers = self.train_latents.windows(indices.tolist(), epochs.tolist())
        return frames, torch.empty(len(indices), 0), self.tokens[numbers]

    @property
    def streams(self) -> ShardClips | None:
        """Archives that all clips are read from in training."""
        return streams_of(self.clips) if self.clip_count == len(self.clips) else None

    def _open_first_stage(self, folder: Path) -> None:
        """Nothing: clips are their own latents."""

    def _encode(self, clips: Clips, split: Split, count: int) -> WindowedClips:
        recipe = self.recipe
        return WindowedClips(clips, count, recipe.stage, recipe.data.frames, recipe.pixels.shrink, recipe.seed)

    def _measure(self) -> Table:
        return {name: value for name, value in asdict(LATENT).items() if name != "channels"}

    def _sample(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        return mean.float().div(127.5).sub(1)

    def _build_network(self) -> nn.Module:
        network = PixelUNet(self.recipe.network, operations=TrainingOperations)
        initialize_denoiser(network, self.recipe.initialization)
        return network

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        settings, device, count = self.recipe.conditioning, latents.device, len(latents)
        if self.recipe.stage == "base":
            return {}
        # After a step of the training: the same noise each time, and no other random numbers are used up.
        generator = None if step is not None else torch.Generator(device).manual_seed(0)
        draw = drawn if step is not None else called  # every process validates on all clips
        most, shape = settings.highest_level + 1, latents.shape[1:]
        levels = draw(lambda rows: torch.randint(most, (rows,), generator=generator, device=device), count)
        noise = draw(lambda rows: torch.randn(rows, *shape, generator=generator, device=device), count)
        if self.recipe.stage == "interpolation":
            augmentation = noise[:, :, [0, -1]] if settings.highest_level else None
            return interpolation_cues(latents, settings.blend, levels, augmentation)
        chances = draw(lambda rows: torch.rand(rows, generator=generator, device=device), count)
        carried = chances < settings.carried
        return super_resolution_cues(latents, levels, noise, carried)

    def _predict(self, network: nn.Module, noisy: Tensor, times: Tensor, context: Tensor, **cues: Tensor) -> Tensor:
        given = cues.pop("given", None)
        seen = noisy if given is None else torch.cat([noisy, given], dim=1)
        predicted: Tensor = network(seen, times, context, **cues)
        return predicted[:, :COLOURS]


class WindowedClips(Latents):
    """Clips as they are, loaded whenever they are used: as many frames of each as the stage sees at once."""

    def __init__(self, clips: Clips, count: int, stage: Stage, frames: int, shrink: int, seed: int) -> None:
        super().__init__([])
        self.captions, self.indices = clips.texts(count), list(range(count))
        self._clips, self._shrink, self._seed = clips, shrink, seed
        self.length, self.starts = windows(stage, frames)

    def take(self, numbers: list[int], epochs: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Windows (B, C, T, H, W) uint8 as their epochs, by default the first, see them; and nothing (B, 0)."""
        return self.windows(numbers, [0] * len(numbers) if epochs is None else epochs)[0], torch.empty(len(numbers), 0)

    def windows(self, numbers: list[int], epochs: list[int]) -> tuple[Tensor, list[int]]:
        """Windows (B, C, T, H, W) uint8 as their epochs see them, and the numbers of their clips."""
        videos, numbers = stack_readable(self._clips, numbers, epochs)
        chosen = torch.stack([self._window(*each) for each in zip(videos, numbers, epochs, strict=True)])
        frames = chosen.movedim(-1, 1)
        if self._shrink > 1:
            frames = shrunk(frames.float(), self._shrink).round().to(torch.uint8)
        return frames.contiguous(), numbers

    def _window(self, video: Tensor, number: int, epoch: int) -> Tensor:
        start = int(np.random.default_rng((self._seed, number, epoch)).choice(self.starts))
        return video[start : start + self.length]


def windows(stage: Stage, frames: int) -> tuple[int, list[int]]:
    """How many frames a stage sees at once of a clip, and where these may begin.

    Interpolation sees what lies between neighbouring keyframes, these included; keyframes are made all at once.
    """
    if stage == "base":
        return frames, [0]
    if stage == "interpolation":
        length = KEYFRAME_DISTANCE + 1
        return length, list(range(0, frames - length + 1, KEYFRAME_DISTANCE))
    length = min(WINDOW, frames)
    return length, list(range(frames - length + 1))


def shrunk(frames: Tensor, factor: int) -> Tensor:
    """(B, C, T, H, W) -> (B, C, T, H/factor, W/factor): every pixel the mean of those in its place."""
    return F.avg_pool3d(frames, (1, factor, factor))


def interpolation_cues(
    window: Tensor, blend: bool, levels: Tensor, augmentation: Tensor | None = None
) -> dict[str, Tensor]:
    """What interpolation is given for windows (B, C, 5, H, W), as it is when sampled (`cascade.interpolate`).

    Args:
        window: as above.
        blend: whether frames between are mixed from the given ones, else zero.
        levels: (B,) of the noise on the first and last frame, `augmentation` (B, C, 2, H, W); None: without.

    Returns:
        "given", (B, C + 1, 5, H, W): colours and mask.
    """
    ends = window[:, :, [0, -1]]
    if augmentation is not None:
        ends = add_noise(NOISING, ends, levels, augmentation)
    return {"given": torch.cat([between(ends[:, :, 0], ends[:, :, 1], blend), ends_mask(window)], dim=1)}


def super_resolution_cues(window: Tensor, levels: Tensor, augmentation: Tensor, carried: Tensor) -> dict[str, Tensor]:
    """What super-resolution is given for large windows (B, C, T, H, W), as it is when sampled (`super_resolve`).

    Args:
        window: as above.
        levels: (B,) of the noise on the enlarged small frames, `augmentation`, like the window.
        carried: (B,) bool, whether the first frame is given as it is, large and clean.

    Returns:
        "given", (B, C, T, H, W), and "noise_level", (B,).
    """
    given = add_noise(NOISING, enlarged(shrunk(window, UPSCALING)), levels, augmentation)
    first = torch.where(carried[:, None, None, None], window[:, :, 0], given[:, :, 0])
    return {"given": torch.cat([first[:, :, None], given[:, :, 1:]], dim=2), "noise_level": levels}
