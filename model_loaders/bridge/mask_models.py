"""Long Video: LVDM's models that are told by a mask which latents are given, one after the other or in a hierarchy.

Shapes: B videos, C channels, T latents of a window, L of the video, H, W latent size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.networks.lvdm import LatentVideoUNetConfig
from ...kernels.sampling import long_video
from ...kernels.sampling.long_video import Window, perturbed
from . import latent as lengths
from .compat import model_management, patcher_extension, sample
from .fingerprint import fingerprint, model_fingerprint
from .model import VideoModel
from .runs import Progress, Run
from .segments import Segments
from .windows import walked

_KEY = "weft_given_latents"
_NOISE_OF_GIVEN = 2**63
"""Between the seed of a window's noise and that of its given latents."""


@dataclass(frozen=True)
class LongVideo:
    """What is made.

    Attributes:
        frames: of the whole video, with the start.
        overlap: latents that a window of the prediction model shares with what is there; among distant ones in a
            hierarchy.
        level: of the noise on given latents, 0 to 249; None leaves them clean and tells the models none.
        strength: w of the unconditional guidance; 0 for none.
        seed: of the first window; every other one has the next.
    """

    frames: int
    overlap: int
    level: int | None
    strength: float
    seed: int


@dataclass(frozen=True)
class Models:
    """MODEL of the prediction, and of the interpolation where there is one."""

    prediction: object
    interpolation: object | None = None

    def of(self, window: Window) -> object:
        """The one that samples a window."""
        return self.prediction if window.kind == "prediction" else self.interpolation


def make_long_video(
    models: Models,
    walk: tuple[object, Tensor],
    latent: dict[str, Tensor],
    wanted: LongVideo,
    conditioning: list | None = None,
    open_segments: Callable[[dict[str, str]], Segments] | None = None,
) -> dict[str, Tensor]:
    """LATENT of the whole video (B, C, L, H, W): hierarchical with a model of interpolation, else autoregressive.

    Args:
        models: of the sampling.
        walk: SAMPLER and SIGMAS.
        latent: LATENT of the start, which is kept exactly; one of zeros has only a size.
        wanted: lengths, noise of given latents, guidance.
        conditioning: for models that read text; LVDM's released ones read none.
        open_segments: opens the finished windows that were made from inputs with these hashes; None keeps none.

    Raises:
        ValueError: MODELs without a mask channel or of different latents, lengths that do not fit each other, a start
            that is no video of these models, or a noise level that they do not know.
    """
    config = _config(models.prediction)
    start = _start(models, latent)
    plan, length = _plan(models, config, wanted, start.shape[2])
    segments = open_segments(_inputs(models, walk, start, wanted, conditioning)) if open_segments else None
    text = conditioning or [[torch.zeros(1, 1, 1), {}]]

    def made(number: int, window: Window, latents: Tensor, progress: Progress) -> Tensor:
        seed = (wanted.seed + number) % 2**64
        noise = sample.prepare_noise(latents, seed)
        strength = wanted.strength if window.given else 0.0  # else both branches are the same
        run = Run(models.of(window), text, text, 1 + strength, *walk, seed)
        if window.given:
            run = _given(run, window, latents, wanted.level)
        return run(noise, progress, shown=window.made)

    room = long_video.extent(plan, length) - start.shape[2]
    video = torch.cat([start, torch.zeros(*start.shape[:2], room, *start.shape[3:])], dim=2)
    return {"samples": walked(plan, video, made, len(walk[1]) - 1, segments)[:, :, :length]}


def _given(run: Run, window: Window, latents: Tensor, level: int | None) -> Run:
    """The same around given latents: both branches see them with their noise, one of them is told (LVDM eq. 8, 9)."""
    inner = run.model.model  # type: ignore[attr-defined]
    clean = inner.process_latent_in(latents)
    noise = sample.prepare_noise(latents, (run.seed + _NOISE_OF_GIVEN) % 2**64)
    shown = perturbed(inner.checkpoint.schedule, clean, level, noise)

    def replaced(executor: Callable[..., Tensor], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """A DIFFUSION_MODEL wrapper; x (branches B, C + 1, T, H, W) on the papers' scale."""
        channels, places = shown.shape[1], list(window.given)
        x = x.clone()
        x[:, :channels, places] = shown[:, :, places].to(x).repeat(len(x) // len(shown), 1, 1, 1, 1)
        return executor(x, *args, **kwargs)

    model = run.model.clone()  # type: ignore[attr-defined]
    model.add_wrapper_with_key(patcher_extension.WrappersMP.DIFFUSION_MODEL, _KEY, replaced)
    told: dict[str, object] = {"concat_mask": window.mask(latents)[:1]}
    if level is not None:
        told["noise_level"] = level
    positive = [[text, {**options, **told}] for text, options in run.positive]
    return replace(run, model=model, positive=positive)


def _config(model: object) -> LatentVideoUNetConfig:
    inner = getattr(model, "model", None)
    config = inner.network_config if isinstance(inner, VideoModel) else None
    if isinstance(config, LatentVideoUNetConfig) and config.in_channels == inner.latent_format.latent_channels + 1:
        return config
    found = inner.checkpoint.name if isinstance(inner, VideoModel) else type(inner).__name__
    raise ValueError(
        f"Found {found}, expected a model of LVDM that is told which latents are given: Extend Video (Weft) takes all "
        "others."
    )


def _start(models: Models, latent: dict[str, Tensor]) -> Tensor:
    """Samples of the start; without latents where it has only a size."""
    samples, channels = latent["samples"], models.prediction.model.latent_format.latent_channels  # type: ignore[attr-defined]
    if samples.ndim != 5 or samples.shape[1] != channels:
        raise ValueError(
            f"The start clip is a latent of shape {tuple(samples.shape)}, this model takes (videos, {channels}, "
            "frames, height, width): encode it with the VAE that belongs to the model, or take Empty Video Latent."
        )
    samples = samples.to(model_management.intermediate_device(), torch.float32)
    return samples if samples.any() else samples[:, :, :0]


def _plan(models: Models, config: LatentVideoUNetConfig, wanted: LongVideo, known: int) -> tuple[list[Window], int]:
    latent_format = models.prediction.model.latent_format  # type: ignore[attr-defined]
    length = lengths.latents_of(latent_format, "frames", wanted.frames)
    if wanted.level is not None and wanted.level >= min(config.noise_levels, long_video.THRESHOLD):
        raise ValueError(
            f"The noise level of given latents is {wanted.level}, this model takes 0 to "
            f"{min(config.noise_levels, long_video.THRESHOLD) - 1}, or -1 for clean ones."
        )
    if models.interpolation is None:
        return long_video.autoregressive(length, config.temporal_length, wanted.overlap, known, exact=True), length
    between = _config(models.interpolation)
    specs = [model.model.checkpoint.latent for model in (models.prediction, models.interpolation)]  # type: ignore[attr-defined]
    if specs[0] != specs[1]:
        raise ValueError(f"The models were made for different latents ({specs[0]}, {specs[1]}): take two of one kind.")
    plan = long_video.hierarchical(length, config.temporal_length, wanted.overlap, between.temporal_length, known)
    return plan, length


def _inputs(
    models: Models, walk: tuple[object, Tensor], start: Tensor, wanted: LongVideo, conditioning: list | None
) -> Mapping[str, str]:
    """Hashes of all that the windows are made from, but for what only the graph says of it."""
    sampler, sigmas = walk
    used = [models.prediction] + ([models.interpolation] if models.interpolation else [])
    values = {
        "model": [model_fingerprint(model) for model in used],
        "conditioning": conditioning,
        "sampler": [type(sampler), *(getattr(sampler, name, None) for name in ("sampler_function", "extra_options"))],
        "sigmas": sigmas,
        "start": start,
        "settings": vars(wanted),
    }
    return {name: fingerprint(value) for name, value in values.items()}
