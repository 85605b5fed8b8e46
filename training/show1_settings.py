"""What a recipe says of a stage of Show-1 on pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting

Stage = Literal["base", "interpolation", "sr1"]


@dataclass(frozen=True, kw_only=True)
class PixelFrames:
    """What becomes of the clips, which are loaded whenever they are used."""

    shrink: int = setting(
        1, minimum=1, doc="the stage's frames are smaller than data.size by this factor, each pixel a mean of pixels"
    )
    clips: int = setting(0, minimum=0, doc="clips that are trained on; 0: all of the data set")


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What interpolation and super-resolution are given."""

    blend: bool = setting(
        True, doc="interpolation: between the given frames their mixtures, as released; false: zeros, as in the paper"
    )
    highest_level: int = setting(
        0,
        minimum=0,
        maximum=999,
        doc="noise on what is given: a level up to this one, drawn for each clip; 0: none between keyframes",
    )
    carried: float = setting(
        0.5,
        minimum=0,
        maximum=1,
        doc="sr1: share of clips given their first frame clean and large, as from the window before",
    )
