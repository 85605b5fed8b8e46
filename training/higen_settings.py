"""What a recipe says of HiGen's cues and of its training on pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class EncoderFeatures:
    """Appearance by an image encoder."""

    kind: Literal["encoder"] = setting("encoder", doc="DINOv2 (the paper's choice) or CLIP's image tower")
    path: str = setting(doc="folder of the model with its image processor, in transformers' layout")


@dataclass(frozen=True, kw_only=True)
class ColourFeatures:
    """Appearance by how much colour there is, for Moving Shapes."""

    kind: Literal["colours"] = setting("colours", doc="amount of colour: needs no image encoder")


@dataclass(frozen=True, kw_only=True)
class Cues:
    """What HiGen learns to be steered by (section 3.3)."""

    features: EncoderFeatures | ColourFeatures = setting(doc="in which features of frames appearance is compared")
    similarity: Literal["cosine", "released"] = setting(
        "cosine", doc="cosine: the paper's; released: 5 cos - 4, made for CLIP features"
    )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Joint training on images: single frames, or pictures of their own; in HiGen they train no temporal layer."""

    share: float = setting(0.25, minimum=0, maximum=1, doc="share of steps on pictures; a quarter in the papers")
    path: str = setting(
        "", doc="folder of pictures with captions (as of videos) that are used; empty: frames of the clips"
    )
    start: int = setting(0, minimum=0, doc="first step with pictures; what texts say of motion is learned before")
    per_clip: int = setting(4, minimum=1, doc="pictures in these steps for each clip of a batch")
    spread: float = setting(
        1.0, minimum=0, maximum=1, doc="share of the clip, around its middle, that they are taken from; 0: the middle"
    )
