"""What a recipe of LVDM's mask models says: which latents they see, which of them are given, and how noisy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class LatentWindow:
    """Which latents of a clip are a sample; where it begins is drawn anew every time."""

    length: int = setting(4, minimum=2, doc="latents of a sample: 4 for prediction, 5 for interpolation as released")
    every: int = setting(1, minimum=1, doc="every n-th latent: 4 for distant ones as released, 1 for neighbours")

    @property
    def span(self) -> int:
        """Latents of the clip from the first to the last of a sample."""
        return (self.length - 1) * self.every + 1


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which latents are given (LVDM section 3.3); in the remaining share of samples none is."""

    first: float = setting(0.5, minimum=0, maximum=1, doc="share of samples whose first latents are given")
    counts: tuple[int, ...] = setting((1,), minimum=1, doc="how many first latents: one of these numbers")
    ends: float = setting(0.0, minimum=0, maximum=1, doc="share of samples whose first and last latent are given")
    levels: int = setting(
        250, minimum=0, doc="given latents have the noise of a time below this one, which the network is told; 0: none"
    )
    error: Literal["l1", "l2"] = setting("l1", doc="error of the noise: l1 as released, l2 as in the paper")
