"""HiGen's content cues: how much a video moves and how much what it shows changes (arXiv 2312.04483 section 3.3).

Shapes: B clips, T frames, Z latent channels, H, W latent size, R = 32 reference frames, D feature width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.higen import SIMILARITIES
from ..sampling.curves import Curve

MOTION_UNIT = 10.0
"""Factors are the distance of successive latents times this, as released."""
TRAINED_VALUES = 4 * 32 * 56
"""Values of a latent frame in training: distances grow with the root of their number."""
Similarity = Literal["released", "cosine"]
COLOURED = 0.15
"""Chroma from which a pixel counts as coloured; what autoencoders leave on grey is below."""
SMALLEST_AMOUNT = 1e-4
BINS = 16
"""Bins of an amount of colour up to the double."""


@dataclass(frozen=True)
class Content:
    """The cues of one video.

    Attributes:
        motion: factor of each step from frame to frame, (T-1,); 300 to 600 is usual.
        appearance: similarity of each frame to R frames spread over the clip, (T, R); 1 is alike.
    """

    motion: Tensor
    appearance: Tensor

    def __post_init__(self) -> None:
        frames = len(self.motion) + 1
        if frames < 2 or self.appearance.shape != (frames, SIMILARITIES):
            raise ValueError(
                f"Motion of {len(self.motion)} steps and appearance of shape {tuple(self.appearance.shape)}: expected "
                f"at least one step and one row of {SIMILARITIES} similarities more than steps."
            )

    @property
    def frames(self) -> int:
        """T."""
        return len(self.motion) + 1


def designed_content(frames: int, motion: Curve, appearance_factor: float) -> Content:
    """Cues of a wished video: motion between frames f and f+1 is the curve at f, appearance is Eq. 4.

    Factors are whole numbers, as in training. At 32 frames this is the release; the rows of other lengths are the same
    line read at other places, which goes beyond the paper.

    Raises:
        ValueError: fewer than two frames, or a negative motion factor.
    """
    if frames < 2:
        raise ValueError(f"frames is {frames}: content is what happens between frames, choose at least 2.")
    factors = torch.tensor([motion.at(frame) for frame in range(frames - 1)], dtype=torch.float64)
    if factors.min() < 0:
        raise ValueError(f"The motion factor becomes {factors.min():g}: it must not be negative.")
    return Content(factors.trunc().float(), appearance_matrix(frames, appearance_factor))


def appearance_matrix(frames: int, factor: float) -> Tensor:
    """Similarity of frame i to reference frame j, (T, R): 1 - factor * |i/(T-1) - j/(R-1)| (Eq. 4)."""
    places = [torch.linspace(0, 1, count, dtype=torch.float64) for count in (frames, SIMILARITIES)]
    return (1 - factor * (places[0][:, None] - places[1]).abs()).float()


def measured_motion(latents: Tensor) -> Tensor:
    """Motion factor of each step of a clip, (..., T-1): 10 times the distance of successive latents, truncated (Eq. 1).

    Args:
        latents: scaled as the model sees them, (..., T, Z, H, W). Those of another size than in training are measured
            as if they had that size.

    Raises:
        ValueError: fewer than two frames.
    """
    if latents.shape[-4] < 2:
        raise ValueError(f"A clip of {latents.shape[-4]} frame has no motion: give at least 2 frames.")
    distance = latents.double().diff(dim=-4).flatten(-3).norm(dim=-1)
    scale = (TRAINED_VALUES / latents.shape[-3:].numel()) ** 0.5
    return (MOTION_UNIT * scale * distance).trunc().float()


def measured_appearance(features: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of all pairs of frames (..., T, T) from image features (..., T, D) (Eq. 3).

    `cosine` is the paper's; `released` stretches it to 5 cos - 4, so that a cosine of 0.8 becomes 0.
    """
    unit = F.normalize(features.double(), dim=-1)
    cosine = (unit @ unit.mT).clamp(-1, 1)
    return (5 * cosine - 4 if similarity == "released" else cosine).float()


def amount_features(pixels: Tensor) -> Tensor:
    """How much colour frames show, (..., T, H, W, 3) in 0..1, as features (..., T, D) that need no image encoder.

    Amounts are the chroma of all coloured pixels. Their cosine falls in a straight line with the logarithm of their
    ratio, from 1 for equal amounts to 0 for the double: that of two frames is the share of the bins that both fill.
    """
    chroma = pixels.float().amax(-1) - pixels.float().amin(-1)
    amount = torch.where(chroma > COLOURED, chroma, 0).mean(dim=(-2, -1)).clamp(min=SMALLEST_AMOUNT)
    first = math.log(SMALLEST_AMOUNT) - math.log(2) / 2
    bins = torch.arange(first, math.log(2) / 2, math.log(2) / BINS, device=pixels.device)
    inside = math.log(2) / 2 - (amount.log()[..., None] - bins).abs()
    return (0.5 + inside * BINS / math.log(2)).clamp(0, 1)


def similarity_rows(appearance: Tensor, frames: int) -> Tensor:
    """Similarities of all pairs of N frames (B, N, N), read at T frames and R reference frames: (B, T, R)."""
    return F.interpolate(appearance[:, None], (frames, SIMILARITIES), mode="bilinear", align_corners=True)[:, 0]


def thinned(count: int, frames: int) -> list[int]:
    """Numbers of at most `frames` of `count` frames, from the first to the last in steps as even as they can be."""
    return torch.linspace(0, count - 1, min(count, frames)).round().long().tolist()


def fit_content(motion: Tensor, appearance: Tensor, frames: int) -> Content:
    """Measured cues of a clip (N-1,), (N, N) as those of a video of T >= N frames that shows the same.

    Where it takes more steps to move as far, these are smaller.

    Raises:
        ValueError: fewer than two frames, or fewer than the clip has: measure at `thinned` frames instead.
    """
    if frames < max(2, len(motion) + 1):
        raise ValueError(f"frames is {frames}: choose at least 2, and at least the {len(motion) + 1} of the clip.")
    steps = F.interpolate(motion[None, None], frames - 1, mode="linear", align_corners=True)[0, 0]
    steps = steps * len(motion) / (frames - 1)
    rows = similarity_rows(appearance[None], frames)[0]
    return Content(steps.trunc() if len(motion) != frames - 1 else motion, rows)
