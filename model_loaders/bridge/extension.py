"""Extend Video: a video model goes on from frames that are there, window after window, by ComfyUI's noise masks.

It goes on to the end, to a clip that follows, or to the beginning again.

Shapes: B videos, C channels, T latents of a window, L of the video, H, W latent size.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.sampling import long_video
from ...kernels.sampling.curves import TextLine
from ...kernels.sampling.long_video import Window
from . import latent as lengths
from .compat import model_management, sample, sampler_helpers
from .fingerprint import fingerprint, model_fingerprint
from .runs import Progress
from .segments import Segments
from .windows import walked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extension:
    """How a video is extended; lengths in frames.

    Attributes:
        frames: of the whole video.
        window: frames that the model samples at once.
        overlap: frames of them that are there already.
        perturbation: share of the noise schedule, at its end, in which the given latents are free to fit the new ones.
        loop: the last frames lead to the first.
        head_start: share of the noise schedule, at its start, that windows with given latents skip: they begin from
            these standing still, in as much noise as is left then.
        seed: of the first window; every other one has the next.
    """

    frames: int
    window: int
    overlap: int
    perturbation: float
    loop: bool
    seed: int
    head_start: float = 0.0


@dataclass(frozen=True)
class Ends:
    """What is there of a video: latents (B, C, T, H, W) at its start and its end, each without any where none are."""

    start: Tensor
    end: Tensor

    @property
    def lengths(self) -> tuple[int, int]:
        """Latents of both."""
        return self.start.shape[2], self.end.shape[2]


@dataclass(frozen=True)
class Script:
    """Texts that change along a video, and the CLIP that encodes them."""

    lines: list[TextLine]
    clip: object

    def at(self, frame: int) -> str | None:
        """The text of a frame; None before the first line."""
        said = [line.text for line in self.lines if line.frame <= frame]
        return said[-1] if said else None


def extend(
    guider: object,
    sampler: object,
    sigmas: Tensor,
    clips: tuple[dict[str, object], dict[str, object] | None],
    extension: Extension,
    script: Script,
    open_segments: Callable[[dict[str, str]], Segments] | None = None,
) -> dict[str, Tensor]:
    """LATENT of the whole video (B, C, L, H, W), which begins and ends with the given latents exactly as they are.

    Args:
        guider: ComfyUI's, with its model, texts and scale.
        sampler, sigmas: ComfyUI's.
        clips: LATENTs of the start, where one of zeros has only a size, and of the end, if there is one.
        extension: the lengths.
        script: its texts replace the guider's positive one.
        open_segments: opens the finished windows that were made from inputs with these hashes; None keeps none.

    Raises:
        ValueError: lengths that do not fit each other or the model, or clips that are no videos of this model or do not
            fit each other.
    """
    patcher = guider.model_patcher  # type: ignore[attr-defined]
    ends = _ends(patcher, *clips)
    plan, length = _plan(patcher, ends, extension)
    guider = _own_guider(guider, sigmas, extension.perturbation)
    inputs = _inputs(guider, sampler, sigmas, ends, extension, script)
    segments = open_segments(inputs) if open_segments else None
    guiders = _guiders(guider, script, plan, patcher)
    later = _later(patcher, sigmas, extension.head_start)

    def made(number: int, window: Window, latents: Tensor, progress: Progress) -> Tensor:
        seed = (extension.seed + number) % 2**64
        noise = sample.prepare_noise(latents, seed)
        callback = progress.after_step(patcher, window.made)
        levels, mask = sigmas, None
        if window.given:
            levels, mask = later, 1 - window.mask(latents)
            latents = long_video.standing(latents, window) if extension.head_start else latents
        else:
            latents = torch.zeros_like(latents)  # by which ComfyUI knows that there is nothing to start from
        return guiders[number].sample(  # type: ignore[attr-defined, no-any-return]
            noise, latents, sampler, levels, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed
        )

    return {"samples": walked(plan, _room(patcher, ends, length), made, len(sigmas) - 1, segments)}


def _ends(patcher: object, start: dict[str, object], end: dict[str, object] | None) -> Ends:
    first = _clip(patcher, "start", start)
    last = first[:, :, :0] if end is None else _clip(patcher, "end", end)
    if first[:, :, :0].shape != last[:, :, :0].shape:
        raise ValueError(
            f"The start clip is a latent of shape {tuple(first.shape)}, the end clip one of {tuple(last.shape)}: both "
            "need the same number of videos, height and width."
        )
    return Ends(first if first.any() else first[:, :, :0], last)


def _clip(patcher: object, name: str, latent: dict[str, object]) -> Tensor:
    """Samples of a given clip, of the model's channels and size."""
    samples = latent["samples"]
    ratios = [latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal")]
    samples = sample.fix_empty_latent_channels(patcher, samples, *ratios)
    latent_format = patcher.get_model_object("latent_format")  # type: ignore[attr-defined]
    if latent_format.latent_dimensions != 3:
        raise ValueError("This model makes images: Extend Video takes models whose latents have a time axis.")
    if samples.ndim != 5 or samples.shape[1] != latent_format.latent_channels:
        raise ValueError(
            f"The {name} clip is a latent of shape {tuple(samples.shape)}, this model takes (videos, "
            f"{latent_format.latent_channels}, frames, height, width): encode the clip with the VAE that belongs to "
            "the model, or use Empty Video Latent (Weft) to start from nothing."
        )
    return samples.to(model_management.intermediate_device(), torch.float32)


def _plan(patcher: object, ends: Ends, extension: Extension) -> tuple[list[Window], int]:
    """Windows, and latents of the whole video."""
    latent_format = patcher.get_model_object("latent_format")  # type: ignore[attr-defined]
    length = lengths.latents_of(latent_format, "frames", extension.frames)
    window = lengths.latents_of(latent_format, "window", extension.window)
    overlap = lengths.shared_latents(latent_format, "overlap", extension.overlap)
    known, ending = ends.lengths
    if overlap >= window or overlap < 1:
        factor = latent_format.temporal_downscale_ratio
        raise ValueError(
            f"overlap is {extension.overlap} frames, {overlap} latents, window {extension.window} frames, {window} "
            f"latents: take an overlap of {factor} to {(window - 1) * factor} frames."
        )
    if known + ending > length:
        there = lengths.frames_of(latent_format, known + ending)
        held = "the start clip has" if not ending else "the start and end clips have"
        raise ValueError(f"frames is {extension.frames}, {held} {there}: choose {there} or more.")
    plan = long_video.autoregressive(length, window, overlap, known, ending=ending, loop=extension.loop)
    return plan, length


def _room(patcher: object, ends: Ends, length: int) -> Tensor:
    """What is there, and between it what is zero on the model's own scale, so that no offset shines through noise."""
    inner = patcher.model  # type: ignore[attr-defined]
    start, end = ends.start, ends.end
    gap = length - sum(ends.lengths)
    empty = inner.process_latent_out(torch.zeros(*start.shape[:2], gap, *start.shape[3:])).to(start)
    return torch.cat([start, empty, end], dim=2)


def _later(patcher: object, sigmas: Tensor, head_start: float) -> Tensor:
    """Noise levels that are left after the head start."""
    if not head_start:
        return sigmas
    first = float(patcher.get_model_object("model_sampling").percent_to_sigma(head_start))  # type: ignore[attr-defined]
    left = sigmas[sigmas <= first]
    if len(left) < 2:
        raise ValueError(
            f"head_start is {head_start:g}, after which none of the {len(sigmas) - 1} steps is left: take a smaller "
            "one, or more steps."
        )
    return left


def _own_guider(guider: object, sigmas: Tensor, perturbation: float) -> object:
    """A copy that lets given latents go where the noise is below that of the perturbation (LVDM section 3.3).

    LVDM's own models are told the noise of what they are given. Others expect one level in all latents: those given
    have it down to that of the perturbation, and are denoised along with the new ones below it.
    """
    patcher = guider.model_patcher.clone()  # type: ignore[attr-defined]
    if perturbation > 0 and _takes_clean(patcher, sigmas):
        log.info("This model is told which latents are given and takes them clean: perturbation has no effect.")
    elif perturbation > 0:
        held = float(patcher.get_model_object("model_sampling").percent_to_sigma(1 - perturbation))
        before = patcher.model_options.get("denoise_mask_function")

        def mask_at(sigma: Tensor, denoise_mask: Tensor, **options: object) -> Tensor:
            if float(sigma.max()) < held:
                return torch.ones_like(denoise_mask)
            return before(sigma, denoise_mask, **options) if before else denoise_mask

        patcher.set_model_denoise_mask_function(mask_at)
    guider = copy.copy(guider)
    guider.model_patcher = patcher  # type: ignore[attr-defined]
    guider.model_options = patcher.model_options  # type: ignore[attr-defined]
    return guider


def _takes_clean(patcher: object, sigmas: Tensor) -> bool:
    """Whether a model is given latents without noise, such as those with a noise level for each latent."""
    one = torch.ones(1, 1, 1, 1, 1)
    scaled = patcher.model.scale_latent_inpaint(x=one, sigma=sigmas[:1].cpu(), noise=one, latent_image=one * 0)  # type: ignore[attr-defined]
    return not scaled.any()


def _guiders(guider: object, script: Script, plan: list[Window], patcher: object) -> list[object]:
    """A guider for each window, with the text of the first frame that it makes."""
    latent_format = patcher.get_model_object("latent_format")  # type: ignore[attr-defined]
    made: dict[str | None, object] = {None: guider}
    chosen = []
    for window in plan:
        text = script.at(lengths.frames_of(latent_format, window.made_places[0]))
        if text not in made:
            made[text] = _guider_with(guider, script.clip, text)  # type: ignore[arg-type]
        chosen.append(made[text])
    return chosen


def _guider_with(guider: object, clip: object, text: str) -> object:
    """A copy with another positive text; what else the conditioning says stays."""
    positive = guider.original_conds["positive"]  # type: ignore[attr-defined]
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))  # type: ignore[attr-defined]
    other = {key: value for key, value in positive[0].items() if key not in ("cross_attn", "pooled_output", "uuid")}
    conds = [{**other, **entry} for entry in sampler_helpers.convert_cond(encoded)]
    guider = copy.copy(guider)
    guider.original_conds = {**guider.original_conds, "positive": conds}  # type: ignore[attr-defined]
    return guider


def _inputs(
    guider: object, sampler: object, sigmas: Tensor, ends: Ends, extension: Extension, script: Script
) -> dict[str, str]:
    """Hashes of all that the windows are made from, but for what only the graph says of it."""
    numbers = {name: value for name, value in vars(guider).items() if isinstance(value, int | float | str)}
    kind = [type(sampler), *(getattr(sampler, name, None) for name in ("sampler_function", "extra_options"))]
    values = {
        "model": model_fingerprint(guider.model_patcher),  # type: ignore[attr-defined]
        "guider": [type(guider), numbers, guider.original_conds],  # type: ignore[attr-defined]
        "sampler": kind,
        "sigmas": sigmas,
        "start": ends.start,
        "end": ends.end,
        "lengths": vars(extension),
        "script": [vars(line) for line in script.lines],
    }
    return {name: fingerprint(value) for name, value in values.items()}
