"""Show-1's stages on pixels, one node's work each: windows sampled through ComfyUI's guider under one progress bar.

Shapes: B videos, T frames, H, W size in pixels; values in -1..1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.networks.show1 import PixelStage, PixelUNetConfig
from ...kernels.sampling import cascade
from .compat import model_management
from .model import VideoModel, checkpoint_of, threshold_of
from .runs import Progress, Run, check_texts
from .sampling import ancestral_sampler, release_sampler
from .variance import with_recorded_variance

_JOBS: dict[PixelStage, str] = {
    "base": "keyframes",
    "interpolation": "interpolation",
    "sr1": "super-resolution",
    "first frame": "super-resolution of single pictures",
}


@dataclass(frozen=True)
class Settings:
    """How a stage is sampled: the release's solver and its levels where `sampler` and `sigmas` are None."""

    positive: list
    negative: list
    seed: int
    steps: int
    cfg: float
    sampler: object = None
    sigmas: Tensor | None = None


def keyframes(
    model: object, settings: Settings, width: int, height: int, frames: int, batch_size: int
) -> dict[str, Tensor]:
    """LATENT of keyframes (B, 3, T, H, W) from text.

    Raises:
        ValueError: another stage's MODEL, another model's text, or a size that the network cannot halve evenly.
    """
    config = _stage(model, "base", settings)
    _check_size(width, height, config.multiple, "choose")
    draw = _draws(settings.seed)
    noise = draw((batch_size, 3, frames, height, width))
    run = _run(model, settings)
    return {"samples": run(noise, Progress(run.steps))}


def interpolation(
    model: object, settings: Settings, source: object, paper: bool, level: int, keep: bool
) -> dict[str, Tensor]:
    """LATENT of all frames, 4(N-1)+1 for N keyframes.

    Args:
        model: the interpolation stage.
        settings: how it is sampled.
        source: LATENT or IMAGE of the keyframes.
        paper: conditioned as the paper says: zeros between noised keyframes; else as released.
        level: of that noise.
        keep: put the given keyframes back in their places.

    Raises:
        ValueError: another stage's MODEL, another model's text, or keyframes that it cannot take.
    """
    config = _stage(model, "interpolation", settings)
    given = pixels_of(source, "keyframes")
    count = given.shape[2]
    if count < 2:
        raise ValueError(f"Found {count} keyframe, expected at least 2: connect as many pictures, all of one size.")
    _check_size(given.shape[4], given.shape[3], config.multiple, "scale or crop the keyframes to")
    draw = _draws(settings.seed)
    size = given.shape[3:]
    noise = draw((len(given), 3, cascade.KEYFRAME_DISTANCE + 1, *size)).to(given.device)
    augmentation = draw((len(given), 3, count, *size)).to(given.device) if paper else None
    run = _run(model, settings)
    progress = Progress(run.steps * (count - 1))

    def sample(noise: Tensor, shown: Tensor, mask: Tensor) -> Tensor:
        return run.given(concat_latent_image=shown, concat_mask=mask)(noise, progress)

    options = {"blend": not paper, "keep": keep, "level": level, "augmentation": augmentation}
    return {"samples": cascade.interpolate(given, noise, sample, **options)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class FirstFrame:
    """The network for single pictures and how it is sampled: ancestral, with the variance that it predicts."""

    model: object
    steps: int
    cfg: float
    level: int


def super_resolution(
    model: object, settings: Settings, source: object, level: int, carry: bool, first: FirstFrame | None
) -> dict[str, Tensor]:
    """LATENT four times as high and wide.

    Args:
        model: the super-resolution stage.
        settings: how it is sampled.
        source: LATENT or IMAGE of the small video.
        level: of the noise on it.
        carry: windows begin with the frame that the one before ended with.
        first: what makes the very first frame; None: the video network alone.

    Raises:
        ValueError: another stage's MODEL, another model's text, or a size that the networks cannot halve evenly.
    """
    config = _stage(model, "sr1", settings)
    multiple = config.multiple
    if first is not None:
        multiple = max(multiple, _stage(first.model, "first frame", settings).multiple)
    small = pixels_of(source, "small video")
    _check_size(small.shape[4], small.shape[3], max(1, multiple // cascade.UPSCALING), "scale or crop the video to")
    height, width = (size * cascade.UPSCALING for size in small.shape[3:])
    run = _run(model, settings)
    windows = cascade.window_starts(small.shape[2])
    progress = Progress(run.steps * len(windows) + (first.steps if first else 0))
    picture = None if first is None else _first_frame(first, settings, small[:, :, :1], progress)
    draw = _draws(settings.seed)
    shape = (len(small), 3, min(cascade.WINDOW, small.shape[2]), height, width)
    noise, augmentation = draw(shape).to(small.device), draw(shape).to(small.device)

    def sample(noise: Tensor, shown: Tensor) -> Tensor:
        return run.given(concat_latent_image=shown, noise_level=level)(noise, progress)

    video = cascade.super_resolve(small, noise, augmentation, sample, level=level, first=picture, carry=carry)
    return {"samples": video}


def _first_frame(first: FirstFrame, settings: Settings, small: Tensor, progress: Progress) -> Tensor:
    """(B, 3, 1, H, W) -> (B, 3, 4H, 4W)."""
    large = cascade.enlarged(small)
    draw = _draws(settings.seed)
    noise, augmentation = draw(tuple(large.shape)), draw(tuple(large.shape)).to(large.device)
    given = cascade.noised(large, first.level, augmentation)
    model, variance = with_recorded_variance(first.model)
    schedule, threshold = checkpoint_of(first.model).schedule, threshold_of(first.model)
    sampler, sigmas = ancestral_sampler(schedule, first.steps, threshold, variance, lambda: draw(noise.shape))
    run = Run(model, settings.positive, settings.negative, first.cfg, sampler, sigmas, settings.seed)
    return run.given(concat_latent_image=given, noise_level=first.level)(noise, progress)[:, :, 0]


def images_of(latent: dict[str, Tensor]) -> Tensor:
    """LATENT of pixels as IMAGE, (B*T, H, W, 3) in 0..1."""
    frames = latent["samples"].movedim(1, -1).flatten(0, 1)
    return (frames * 0.5 + 0.5).clamp(0.0, 1.0)


def pixels_of(source: object, what: str) -> Tensor:
    """Frames of a LATENT of pixels or an IMAGE, (B, 3, T, H, W) in -1..1.

    Raises:
        ValueError: latents of a VAE.
    """
    device = model_management.intermediate_device()
    if isinstance(source, Tensor):
        return (source[..., :3].float() * 2 - 1).movedim(-1, 0)[None].to(device)
    samples = source["samples"]  # type: ignore[index]
    if samples.ndim == 4:  # as VAEs of pictures encode frames
        samples = samples.movedim(0, 1)[None]
    if samples.ndim != 5 or samples.shape[1] != 3:
        raise ValueError(
            f"Found {what} as a latent of shape {tuple(samples.shape)}, expected pixels (videos, 3, frames, height, "
            "width): connect the LATENT of another stage of Show-1 on pixels, or an IMAGE."
        )
    return samples.float().to(device)


def described(model: object) -> tuple[str, PixelStage | None]:
    """Name of a MODEL's file with what it is, and which stage on pixels that is, if any."""
    inner = getattr(model, "model", None)
    config = inner.network_config if isinstance(inner, VideoModel) else None
    stage = config.stage if isinstance(config, PixelUNetConfig) else None
    name = inner.checkpoint.name if isinstance(inner, VideoModel) else type(inner).__name__
    kind = f"Show-1's {_JOBS[stage]}" if stage else "no stage of Show-1 on pixels"
    return f"{name} ({kind})", stage


def _stage(model: object, expected: PixelStage, settings: Settings) -> PixelUNetConfig:
    """Configuration of the MODEL of a stage, whose text is this."""
    name, found = described(model)
    if found != expected:
        raise ValueError(
            f"Found {name}, expected a model for Show-1's {_JOBS[expected]}: load that one with Load Diffusion Model "
            "(Weft)."
        )
    check_texts(model, settings.positive, settings.negative)
    config: PixelUNetConfig = model.model.network_config  # type: ignore[attr-defined]
    return config


def _run(model: object, settings: Settings) -> Run:
    schedule = checkpoint_of(model).schedule
    sampler, sigmas = release_sampler(schedule, "dpm-solver++", settings.steps, 0.0, 1.0, threshold_of(model))
    run = Run(model, settings.positive, settings.negative, settings.cfg, sampler, sigmas, settings.seed)
    if settings.sampler is not None:
        run = replace(run, sampler=settings.sampler)
    return run if settings.sigmas is None else replace(run, sigmas=settings.sigmas)


def _check_size(width: int, height: int, multiple: int, advice: str) -> None:
    if width % multiple or height % multiple:
        near = "x".join(str(max(multiple, round(size / multiple) * multiple)) for size in (width, height))
        raise ValueError(
            f"Found frames of width x height {width}x{height}, this stage takes multiples of {multiple}: {advice} "
            f"{near}."
        )


def _draws(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """Noise of one generator on the CPU, so that a seed gives the same video on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)
