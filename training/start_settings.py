"""What a recipe says of the weights that training begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class GivenWeights:
    """Weights that a run goes on from, with the scale of their latents."""

    weights: str = setting(
        "", doc="run folder, checkpoint or bundle that all trained networks start from; empty: they are drawn"
    )


@dataclass(frozen=True, kw_only=True)
class DenoiserStart(GivenWeights):
    """How a UNet's weights are drawn; the defaults are those of the released models, which begin as image models.

    Which way something moves is a product of text, frame and place. From nothing it is learned only when a word and a
    frame are already seen clearly in the features of the first step.
    """

    temporal: Literal["zero", "drawn"] = setting(
        "zero", doc="zero: temporal attention and HiGen's cues have no effect at first; drawn: like every other layer"
    )
    text_gain: float = setting(
        1.0, above=0, doc="factor on the output of text attention, in which a word is one of many at first"
    )
    text_focus: float = setting(
        1.0, above=0, doc="factor on the queries of HiGen's resampler, which otherwise read the mean of all words"
    )
    position_gain: float = setting(
        1.0, above=0, doc="factor on what tells frames apart: LVDM's position tables, HiGen's appearance embedding"
    )
    feed_forward_gain: float = setting(
        1.0, above=0, doc="factor on the input of feed-forward layers, in which features are multiplied"
    )


@dataclass(frozen=True, kw_only=True)
class VersVideoStart(DenoiserStart):
    """The same for VersVideo, or an image model of the same sizes."""

    image_model: str = setting(
        "", doc="file of Stable Diffusion 1.5 that it starts from, without effect of what that lacks; empty: drawn"
    )


@dataclass(frozen=True, kw_only=True)
class ImageStart(GivenWeights):
    """How an image model's weights are drawn: every branch begins without effect."""

    text_gain: float = setting(
        1.0, above=0, doc="factor on the output of text attention, in which a word is one of many at first"
    )


@dataclass(frozen=True, kw_only=True)
class MotionStart(GivenWeights):
    """How the parts' weights are drawn; by default motion modules have no effect at first.

    From nothing, which way things move is learned only when a word and a frame are seen clearly from the first step:
    words through the frame tokens, frames through what attention over frames picks.
    """

    motion_gain: float = setting(
        0.0, minimum=0, doc="factor on the output of motion modules as other layers are drawn; 0: no effect at first"
    )
    frame_focus: float = setting(
        1.0, above=0, doc="factor on the queries of their attention, which otherwise reads the mean of all frames"
    )
    feed_forward_gain: float = setting(
        1.0, above=0, doc="factor on the input of their feed-forward layers, in which features are multiplied"
    )
    token_gain: float = setting(
        1.0,
        above=0,
        doc="factor on the weights of the frame tokens' layers; at 3 a text keeps its strength through them",
    )
