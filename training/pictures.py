"""Steps of a video model's training on single frames of its clips.

Shapes: B clips, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import drawn
from .higen_settings import Pictures


def shows_pictures(settings: Pictures, step: int) -> bool:
    """Whether a step is on single frames: spread evenly, in their share, from their start on."""
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
