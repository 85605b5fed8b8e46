"""HiGen's two modes of one MODEL.

Shapes: B videos, C channels, T frames, H, W latent size.
"""

import logging
from typing import Literal

import torch
from torch import Tensor

from ...kernels.analysis.content import (
    Content,
    Similarity,
    amount_features,
    fit_content,
    measured_appearance,
    measured_motion,
    thinned,
)
from ...kernels.analysis.pictures import curve_picture, heat_picture, side_by_side, slice_picture
from ...kernels.networks.higen import HiGenUNetConfig
from .compat import conds, model_management
from .cues import FrameCue, PictureCue, StepCue, with_cues, without_cues
from .latent import empty_latent
from .model import VideoModel

log = logging.getLogger(__name__)
_KEY = "weft_higen"
LEAST_SIMILARITY = -1.0
"""Of frames in a clip, as far as models know it: 5 cos - 4 of CLIP features is rarely below 0."""


def spatial_reasoning(model: object, width: int, height: int, batch_size: int) -> tuple[object, dict[str, object]]:
    """The MODEL as it makes pictures, and an empty LATENT of one frame.

    Raises:
        ValueError: it is not a HiGen model, or a size that it cannot take.
    """
    config = _model(model)
    plain = without_cues(model, _KEY)
    latent_format = model.get_model_object("latent_format")  # type: ignore[attr-defined]
    _check_multiple(width, height, _multiple(config, latent_format.spacial_downscale_ratio))
    return plain, empty_latent(latent_format, width, height, 1, batch_size)


def temporal_reasoning(model: object, prior: dict[str, Tensor], content: Content) -> tuple[object, dict[str, object]]:
    """The MODEL as it animates a picture, and an empty LATENT of the size of the prior and the length of the content.

    Args:
        model: HiGen.
        prior: LATENT of one frame per video, (B, C, H, W) or (B, C, 1, H, W), from spatial reasoning or any picture
            encoded by the VAE.
        content: cues of the video.

    Raises:
        ValueError: it is not a HiGen model, or the prior is no picture in its latent space.
    """
    config = _model(model)
    picture = _picture(prior["samples"], config)
    latent_format = model.get_model_object("latent_format")  # type: ignore[attr-defined]
    pixels = latent_format.spacial_downscale_ratio
    height, width = (size * pixels for size in picture.shape[2:])
    _check_multiple(width, height, _multiple(config, pixels), "the picture's ", "; scale or crop it before VAE Encode")
    scaled = latent_format.process_in(picture)

    def cues(noise: Tensor) -> dict[str, conds.CONDRegular]:
        _check_noise(noise, scaled, content)
        device = model_management.get_torch_device()
        return {
            "prior": PictureCue(scaled.to(device)),
            "motion": StepCue(content.motion[None].long().to(device)),
            "appearance": FrameCue(content.appearance[None].to(device)),
        }

    shape = (len(picture), picture.shape[1], content.frames, *picture.shape[2:])
    samples = torch.zeros(shape, device=model_management.intermediate_device())
    latent = {"samples": samples, "downscale_ratio_spacial": pixels, "downscale_ratio_temporal": 1}
    return with_cues(model, _KEY, cues), latent


def _model(model: object) -> HiGenUNetConfig:
    inner = getattr(model, "model", None)
    config = inner.network_config if isinstance(inner, VideoModel) else None
    if isinstance(config, HiGenUNetConfig):
        return config
    found = inner.checkpoint.name if isinstance(inner, VideoModel) else type(inner).__name__
    raise ValueError(f"Found {found}, expected a HiGen model: load one with Load Diffusion Model (Weft).")


def _picture(samples: Tensor, config: HiGenUNetConfig) -> Tensor:
    """The prior as (B, C, H, W)."""
    if samples.ndim == 5:
        if samples.shape[2] != 1:
            raise ValueError(
                f"The spatial prior has {samples.shape[2]} frames, expected one: connect the latent of HiGen Spatial "
                "Reasoning or of an encoded image, or take a frame with LatentCut. Several pictures are encoded one by "
                "one and joined by Latent Batch."
            )
        samples = samples[:, :, 0]
    if samples.ndim != 4 or samples.shape[1] != config.in_channels:
        raise ValueError(
            f"The spatial prior has shape {tuple(samples.shape)}, expected (videos, {config.in_channels}, height, "
            "width): encode the image with the VAE that belongs to this model."
        )
    return samples


def _check_noise(noise: Tensor, prior: Tensor, content: Content) -> None:
    """Before the first step: the sampled latent is the one that this model was prepared for."""
    advice = "connect the LATENT of HiGen Temporal Reasoning to the sampler."
    if noise.shape[2] != content.frames:
        raise ValueError(f"The latent has {noise.shape[2]} frames, the content was made for {content.frames}: {advice}")
    if noise.shape[3:] != prior.shape[2:]:
        found, expected = ("x".join(map(str, size)) for size in (noise.shape[3:], prior.shape[2:]))
        raise ValueError(f"The latent has height x width {found}, the spatial prior {expected}: {advice}")
    if len(prior) not in (1, len(noise)):
        raise ValueError(f"There are {len(prior)} spatial priors for {len(noise)} videos: {advice}")


def _multiple(config: HiGenUNetConfig, pixels: int) -> int:
    """Sizes in pixels, so many to a latent, that every level of the network halves evenly, as in training."""
    return pixels * 2 ** (len(config.channel_mult) - 1)


def _check_multiple(width: int, height: int, factor: int, whose: str = "", advice: str = "") -> None:
    for name, size in (("width", width), ("height", height)):
        if size % factor:
            below = size // factor * factor
            near = " or ".join(str(value) for value in (below, below + factor) if value)
            raise ValueError(f"{whose}{name} is {size}, HiGen takes multiples of {factor}: choose {near}{advice}.")


def measured_content(
    model: object,
    images: Tensor,
    vae: object,
    similarity: Similarity | Literal["colours"],
    frames: int,
    clip_vision: object = None,
) -> tuple[Content, Tensor]:
    """Cues of a clip for a video of `frames` frames (0: as many as the clip has), and a picture of them (1, H, W, 3).

    Args:
        model: HiGen; its latent scale is read.
        images: frames (T, H, W, 3) in 0..1.
        vae: as ComfyUI loads it.
        similarity: how features of frames are compared; `colours` are features of our own.
        frames: as above; a longer clip is measured at as many of its frames, a shorter one is stretched.
        clip_vision: as ComfyUI loads it; makes the features of the other two.

    Raises:
        ValueError: one frame, a VAE of another latent space, no image encoder or one without features of whole images.
    """
    config = _model(model)
    if len(images) < 2:
        raise ValueError(f"The clip has {len(images)} frame: motion needs at least 2.")
    if frames == 1:
        raise ValueError("frames is 1: content is what happens between frames, choose at least 2, or 0 for all.")
    frames = frames or len(images)
    pixels = images[thinned(len(images), frames), :, :, :3].cpu()
    if similarity == "colours":
        appearance = measured_appearance(amount_features(pixels), "cosine")
    else:
        appearance = measured_appearance(_features(clip_vision, pixels), similarity)
    lowest = min(0.0, float(appearance.min()))
    if lowest < LEAST_SIMILARITY:
        log.warning(
            "HiGen Content From Video: similarities fall to %.1f, models know about 0 to 1: the clip has cuts, or the "
            "image encoder does not go with '%s' ('released' is for CLIP, 'cosine' for DINO).",
            lowest,
            similarity,
        )
    latents = _encoded(vae, pixels, config.in_channels)
    motion = measured_motion(model.get_model_object("latent_format").process_in(latents))  # type: ignore[attr-defined]
    content = fit_content(motion, appearance, frames)
    pictures = [curve_picture(motion), heat_picture(appearance, lowest, 1.0), slice_picture(pixels)]
    return content, side_by_side(pictures)[None]


def _encoded(vae: object, pixels: Tensor, channels: int) -> Tensor:
    """Latents of single frames, (T, C, H, W)."""
    latents = torch.cat([vae.encode(frame[None]).cpu() for frame in pixels])  # type: ignore[attr-defined]
    latents = latents[:, :, 0] if latents.ndim == 5 else latents
    if latents.ndim != 4 or latents.shape[:2] != (len(pixels), channels):
        raise ValueError(
            f"The VAE makes latents of shape {tuple(latents.shape)} from {len(pixels)} frames, expected "
            f"({len(pixels)}, {channels}, height, width): use the VAE that belongs to the model."
        )
    return latents


def _features(clip_vision: object, pixels: Tensor) -> Tensor:
    """One row of features per frame, (T, D)."""
    if clip_vision is None:
        raise ValueError(
            "No image encoder is connected: use Load CLIP Vision, or similarity 'colours', which needs none."
        )
    if not hasattr(clip_vision, "encode_image"):
        raise ValueError(f"Found a {type(clip_vision).__name__}, which is no image encoder: use Load CLIP Vision.")
    rows = []
    for frame in pixels:
        features = getattr(clip_vision.encode_image(frame[None]), "image_embeds", None)
        if not isinstance(features, Tensor) or features.ndim != 2:
            found = "none" if features is None else f"shape {tuple(features.shape)}"
            raise ValueError(
                f"The image encoder gives no feature row per image ({found}): use CLIP ViT-H, another CLIP, or DINO."
            )
        rows.append(features.cpu())
    return torch.cat(rows).float()
