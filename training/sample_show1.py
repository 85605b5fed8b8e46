"""Videos from captions by trained stages of Show-1, one after the other: DPM-Solver++ with guidance, without ComfyUI.

The first of the runs need not be that of the keyframes. Another stage is then given held-out clips of its data set, as
in training: what it makes of them is not held back by the stages before.

Shapes: B videos, C colours, T frames, H, W pixels; values in -1..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.networks.show1 import COLOURS, PixelUNet
from ..kernels.sampling import cascade
from ..kernels.sampling.dpm_solver import dpm_timesteps
from ..kernels.sampling.schedules import NoiseSchedule
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from .config import DiffusionRecipe, ExpertRecipe, Show1Recipe
from .data.clips import open_clips, stack_videos
from .export import Trained
from .sample import encode_captions
from .sample_expert import ENLARGING, EXPERT, TrainedExpert
from .sections import frame_size
from .settings import InputError
from .show1_task import shrunk
from .walk import walk

RELEASED_LEVEL = 250
"""Of the noise on what super-resolution is given, where it was trained with as much."""
_ORDER = ("base", "interpolation", "sr1", EXPERT)


class PixelStage:
    """One stage on pixels: its network, its text encoder and how it is sampled."""

    def __init__(self, network: PixelUNet, text_encoder: nn.Module, schedule: NoiseSchedule, level: int) -> None:
        """`level`: of the noise on what super-resolution is given."""
        self.network, self.text_encoder, self.schedule, self.level = network, text_encoder, schedule, level

    def sample(self, noise: Tensor, *given: Tensor, text: Tensor, steps: int, guidance: float) -> Tensor:
        """Noise (B, C, T, H, W), what the stage is given beside it, text (2B, N, D), without words last -> a sample."""
        threshold, level = self.network.config.threshold, {}
        if self.network.config.noise_levels:
            level["noise_level"] = torch.full((2 * len(noise),), self.level, device=noise.device)

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            seen = torch.cat([noisy, *given], dim=1).repeat(2, 1, 1, 1, 1)
            predicted: Tensor = self.network(seen, times, text, **level)
            return predicted[:, :COLOURS]

        return walk(predict, self.schedule, noise, steps, guidance, threshold)


class TrainedStage(PixelStage):
    """That of a run, with its recipe."""

    def __init__(self, source: Path, device: torch.device) -> None:
        trained = Trained(source)
        if not isinstance(trained.recipe, Show1Recipe):
            raise InputError(f"{source}: a run of {trained.recipe.task}, expected show1")
        if TEXT_ENCODER not in trained.networks:
            raise InputError(f"{source}: its text encoder is not its own; sample with ComfyUI")
        self.recipe, self.name = trained.recipe, trained.recipe.stage
        network = trained.networks[MODEL].to(device)
        assert isinstance(network, PixelUNet)
        level = min(RELEASED_LEVEL, self.recipe.conditioning.highest_level)
        schedule = trained.recipe.schedule.noise_schedule()
        super().__init__(network, trained.networks[TEXT_ENCODER].to(device), schedule, level)
        height, width = frame_size(trained.recipe.data)
        self.size = height // trained.recipe.pixels.shrink, width // trained.recipe.pixels.shrink


SomeStage = TrainedStage | TrainedExpert


class CascadeSampler:
    """Finished runs of neighbouring stages, ready to make videos."""

    def __init__(self, sources: Sequence[Path], device: torch.device) -> None:
        self.stages = [_opened(source, device) for source in sources]
        self.device = device
        self.recipe: DiffusionRecipe = self.stages[-1].recipe
        found = [stage.name for stage in self.stages]
        first = _ORDER.index(found[0])
        if tuple(found) != _ORDER[first : first + len(found)]:
            raise InputError(f"found runs of the stages {', '.join(found)}, expected neighbours in {', '.join(_ORDER)}")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            _check_sizes(before, after)
        self._clips = None if found[0] == "base" else open_clips(self.stages[0].recipe.data, "held_out")

    def captions(self, count: int) -> list[str] | None:
        """Those of the held-out clips that the first stage is given; None where it makes videos of any caption."""
        if self._clips is None:
            return None
        if count > len(self._clips):
            raise InputError(f"--count: found {count}, the data set has {len(self._clips)} held-out clips")
        return self._clips.texts(count)

    @torch.no_grad()
    def __call__(self, captions: list[str], steps: int, guidance: float, seed: int, first: int = 0) -> Tensor:
        """Captions (B) -> uint8 frames (B, T, H, W, 3); `first`: number of the first one's clip among the held-out."""
        for stage in self.stages:
            try:
                dpm_timesteps(stage.schedule, steps)
            except ValueError as error:
                raise InputError(f"--steps: {error}") from error
        generator = torch.Generator().manual_seed(seed)
        video = torch.empty(0) if self._clips is None else self._given(range(first, first + len(captions)))
        for stage in self.stages:
            encode = partial(encode_captions, stage.text_encoder)
            text = torch.cat([encode(captions), encode([""] * len(captions))])
            video = self._made(stage, video, text, generator, steps, guidance)
        return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()

    def _made(
        self, stage: SomeStage, video: Tensor, text: Tensor, generator: torch.Generator, steps: int, guidance: float
    ) -> Tensor:
        """What a stage makes of the video before it."""
        if isinstance(stage, TrainedExpert):
            return stage.sample(video, text, generator, steps, guidance)
        settings, count = stage.recipe.conditioning, len(text) // 2
        sample = partial(stage.sample, text=text, steps=steps, guidance=guidance)

        def draw(frames: int) -> Tensor:
            return torch.randn(count, COLOURS, frames, *stage.size, generator=generator).to(self.device)

        if stage.name == "base":
            return sample(draw(stage.recipe.data.frames))
        if stage.name == "interpolation":
            augmentation = draw(video.shape[2]) if settings.highest_level else None
            noise = draw(cascade.KEYFRAME_DISTANCE + 1)
            options = {"blend": settings.blend, "level": stage.level, "augmentation": augmentation}
            return cascade.interpolate(video, noise, sample, **options)  # type: ignore[arg-type]
        window = min(cascade.WINDOW, video.shape[2])
        carry = settings.carried > 0
        return cascade.super_resolve(video, draw(window), draw(window), sample, level=stage.level, carry=carry)

    def _given(self, numbers: range) -> Tensor:
        """What the first stage is given of held-out clips: their keyframes, or all frames, but small."""
        assert self._clips is not None
        stage = self.stages[0]
        videos, _ = stack_videos(self._clips, list(numbers))
        frames = videos.movedim(-1, 1).float()
        if isinstance(stage, TrainedExpert):
            return shrunk(frames, ENLARGING).div(127.5).sub(1).to(self.device)
        factor = stage.recipe.pixels.shrink
        if stage.name == "interpolation":
            frames = frames[:, :, :: cascade.KEYFRAME_DISTANCE]
        else:
            factor *= cascade.UPSCALING
        return shrunk(frames, factor).div(127.5).sub(1).to(self.device)


def _opened(source: Path, device: torch.device) -> SomeStage:
    expert = isinstance(Trained(source).recipe, ExpertRecipe)
    return TrainedExpert(source, device) if expert else TrainedStage(source, device)


def _check_sizes(before: SomeStage, after: SomeStage) -> None:
    """Raises InputError where a stage cannot go on from what the one before makes."""
    factor = cascade.UPSCALING if after.name == "sr1" else 1
    expected = after.size[0] // factor, after.size[1] // factor
    fits = all(small <= large for small, large in zip(before.size, expected, strict=True))
    # The expert enlarges by any factor.
    if before.size != expected if after.name != EXPERT else not fits:
        raise InputError(
            f"the stage {before.name} makes frames of height and width {before.size}, the stage {after.name} was "
            f"trained to go on from {expected}{' or smaller' if after.name == EXPERT else ''}"
        )


def opens(source: Path) -> bool:
    """Whether a run is one of a stage of Show-1."""
    return isinstance(Trained(source).recipe, Show1Recipe | ExpertRecipe)
