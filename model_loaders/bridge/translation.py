"""Show-1's expert translation (arXiv 2309.15818, section 3.4): SDEdit (arXiv 2108.01073) by a latent video MODEL.

Shapes: T frames, H, W size in pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.sampling.cascade import resized
from .cascade import Settings, described
from .compat import context_windows, model_management, samplers
from .model import VideoModel
from .runs import Progress, Run, check_texts
from .sampling import release_sampler
from .vae import FramewiseVAE


@dataclass(frozen=True)
class Cut:
    """How a large video is taken in parts.

    Attributes:
        window: latents along time that the model sees at once; 0: all.
        overlap: latents that neighbouring windows share.
        tile: width and height in pixels of what the VAE encodes at once; 0: whole frames.
    """

    window: int = 0
    overlap: int = 4
    tile: int = 0


def expert_translation(
    model: object, vae: object, images: Tensor, settings: Settings, width: int, height: int, strength: float, cut: Cut
) -> dict[str, Tensor]:
    """LATENT of a video with the details that the model adds to an enlarged one.

    Args:
        model: any that makes videos in latents with a time axis.
        vae: that belongs to it, of videos or of images.
        images: frames (T, H, W, 3) in 0..1.
        settings: how it is sampled.
        width, height: of the result, in pixels.
        strength: share of the walk that is done, from its end.
        cut: as above.

    Raises:
        ValueError: a model of images, another model's VAE or text, a size between two latents, or an overlap as long
            as the window.
    """
    _check(model, vae, width, height, cut)
    check_texts(model, settings.positive, settings.negative)
    sampler, sigmas = _walk_of(model, settings, strength)
    vae = FramewiseVAE(vae) if vae.latent_dim == 2 else vae  # type: ignore[attr-defined]
    latent = _encoded(vae, resized(images[..., :3], width, height), cut.tile)
    noise = _noise(latent, settings.seed)
    if 0 < cut.window < latent.shape[2]:
        model = _windowed(model, cut)
    run = Run(model, settings.positive, settings.negative, settings.cfg, sampler, sigmas, settings.seed)
    return {"samples": run(noise, Progress(run.steps), latent)}


def _check(model: object, vae: object, width: int, height: int, cut: Cut) -> None:
    said, stage = described(model)
    if stage is not None:
        raise ValueError(
            f"Found {said}, which works on pixels: connect a model in latents, such as Show-1's super-resolution 2 "
            "(show-1-sr2), and the VAE that belongs to it."
        )
    latent_format = model.get_model_object("latent_format")  # type: ignore[attr-defined]
    name = type(model.model).__name__  # type: ignore[attr-defined]
    if latent_format.latent_dimensions != 3:
        raise ValueError(
            f"Found a model of images ({name}), whose latents have no time axis: connect one of videos, such as "
            "Show-1's super-resolution 2, ModelScope, LVDM or the core's video models."
        )
    if getattr(vae, "latent_dim", None) not in (2, 3):
        raise ValueError(f"Found a {type(vae).__name__}, expected the VAE of videos or images of the model.")
    channels = latent_format.latent_channels
    if vae.latent_channels != channels:  # type: ignore[attr-defined]
        raise ValueError(
            f"The VAE makes latents of {vae.latent_channels} channels, the model takes {channels}: "  # type: ignore[attr-defined]
            "use the VAE that belongs to the model."
        )
    pixels = latent_format.spacial_downscale_ratio
    if width % pixels or height % pixels:
        near = "x".join(str(max(pixels, round(size / pixels) * pixels)) for size in (width, height))
        raise ValueError(f"width x height is {width}x{height}, this model takes multiples of {pixels}: choose {near}.")
    if cut.window and cut.overlap >= cut.window:
        raise ValueError(f"overlap is {cut.overlap}, the window {cut.window}: choose a smaller overlap.")


def _walk_of(model: object, settings: Settings, strength: float) -> tuple[object, Tensor]:
    """The released solver on the schedules of this pack's models, Euler on the core's."""
    inner, steps = model.model, settings.steps  # type: ignore[attr-defined]
    sampler, sigmas = settings.sampler, settings.sigmas
    if sampler is None and isinstance(inner, VideoModel):
        if strength == 1.0 and inner.checkpoint.schedule.zero_terminal_snr:
            raise ValueError(
                "This model's schedule ends at pure noise, where nothing of the video is left to go on from: choose a "
                "strength below 1."
            )
        released, levels = release_sampler(inner.checkpoint.schedule, "dpm-solver++", steps, 0.0, strength)
        return released, levels if sigmas is None else sigmas
    if sigmas is None:
        sampling = model.get_model_object("model_sampling")  # type: ignore[attr-defined]
        levels = samplers.calculate_sigmas(sampling, "simple", steps)
        sigmas = levels[-(max(1, int(steps * strength)) + 1) :]
    return sampler or samplers.sampler_object("euler"), sigmas


def _encoded(vae: object, images: Tensor, tile: int) -> Tensor:
    if tile:
        return vae.encode_tiled(images, tile_x=tile, tile_y=tile, overlap=tile // 4)  # type: ignore[attr-defined]
    return vae.encode(images)  # type: ignore[attr-defined]


def _noise(latent: Tensor, seed: int) -> Tensor:
    """Drawn frame by frame, as released: (B, C, T, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, frames, height, width = latent.shape
    drawn = torch.randn(batch, frames, channels, height, width, generator=generator)
    return drawn.transpose(1, 2).to(model_management.intermediate_device())


def _windowed(model: object, cut: Cut) -> object:
    """A clone that the core calls for windows of time and blends them."""
    patched = model.clone()  # type: ignore[attr-defined]
    handler = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule(
            context_windows.ContextSchedules.STATIC_STANDARD
        ),
        fuse_method=context_windows.get_matching_fuse_method(context_windows.ContextFuseMethods.PYRAMID),
        context_length=cut.window,
        context_overlap=cut.overlap,
        dim=2,
    )
    # Windows of one length: a frame in front of later ones is for models that look back only.
    handler.causal_window_fix = False
    patched.model_options["context_handler"] = handler
    context_windows.create_prepare_sampling_wrapper(patched)
    return patched
