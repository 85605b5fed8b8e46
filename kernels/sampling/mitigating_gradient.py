"""Mitigating-gradient guidance: neighbouring frames are drawn together while they are sampled (HARIVO, Algorithm 1).

Shapes: B videos, F frames, P = F-1 pairs of neighbours.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Form = Literal["algorithm", "exact"]
LARGEST_NOISE_RATIO = 25.15
"""Noise over signal at the last time of HARIVO's schedule; models that begin at more are guided as at this."""
PAPER_VALUES = 4 * 32 * 32
"""Values of a frame's latent for which `alpha` was chosen."""


def mitigated(
    denoised: Tensor,
    alpha: float,
    noise_ratio: Tensor | float,
    *,
    form: Form = "algorithm",
    per_element: bool = False,
) -> Tensor:
    """Draw the frames of videos (B, F, ...) towards each other where neighbours differ little; same shape and type.

    The correction is the gradient of the sum of Gaussian kernels of the differences between neighbours, whose width is
    the median heuristic of each video (Eq. 7, Algorithm 1). It is strongest for pairs at 0.4 of the median at 24 frames
    and vanishes for cuts.

    Args:
        denoised: predicted clean videos, after guidance.
        alpha: strength; 40 in the paper.
        noise_ratio: coefficient of the noise over that of the clip in the noisy latent, a number or one per video.
        form: `algorithm` corrects the later frame of a pair, as printed; `exact` is the whole gradient.
        per_element: multiply alpha by the values of a frame over those of the paper.
    """
    frames = denoised.shape[1]
    if frames < 2 or alpha == 0:
        return denoised
    video = denoised.double() if denoised.dtype == torch.float64 else denoised.float()
    flat = video.flatten(2)
    difference = flat.diff(dim=1)
    distance = difference.norm(dim=2)
    # The lower of two middle values, as torch's median.
    width = distance.median(dim=1, keepdim=True).values ** 2 / math.log(max(frames - 1, 2))
    inside = (width > 0) & width.isfinite()
    width = torch.where(inside, width, torch.ones_like(width))
    weight = torch.where(inside, 2 * (-(distance**2) / width).exp() / width, torch.zeros_like(distance))
    pull = weight[..., None] * difference
    correction = torch.zeros_like(flat)
    correction[:, 1:] += pull
    if form == "exact":
        correction[:, :-1] -= pull
    strength = alpha * (flat.shape[2] / PAPER_VALUES if per_element else 1.0)
    ratio = torch.as_tensor(noise_ratio, dtype=flat.dtype, device=flat.device).clamp(max=LARGEST_NOISE_RATIO)
    corrected = flat - strength * ratio.reshape(-1, 1, 1) ** 2 * correction
    return corrected.view_as(video).to(denoised.dtype)
