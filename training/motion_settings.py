"""What a recipe says of motion around a frozen image model."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class ImageModelSource:
    """The frozen image model."""

    path: str = setting(
        doc="run folder, checkpoint or exported file of an image model, or a folder in diffusers' layout"
    )


@dataclass(frozen=True, kw_only=True)
class MotionParts:
    """What is put around the image model's UNet, which decides all other sizes; the defaults are HARIVO's."""

    middle: bool = setting(False, doc="a motion module in the middle block too")
    max_frames: int = setting(24, minimum=1, doc="the longest clip that the parts are made for")
    mapping: bool = setting(True, doc="the mapping network in front of the UNet")
    mapping_heads: int = setting(8, minimum=1, doc="heads of its attention over frames")
    mapping_head_width: int = setting(64, minimum=1, doc="width of each of these heads")
    frame_tokens: int = setting(3, minimum=0, doc="text tokens that are made for each frame; 0: none")


@dataclass(frozen=True, kw_only=True)
class MotionLosses:
    """Weights of HARIVO's losses beside that of the noise, which has weight 1; what has weight 0 is not computed."""

    attention: float = setting(
        0.1, minimum=0, doc="L_TRS: the decoder's spatial attention changes little from frame to frame"
    )
    image: float = setting(0.1, minimum=0, doc="L_reg: close to what the image model predicts for each frame alone")
    contrast: float = setting(0.1, minimum=0, doc="L_DC: frames of a clip are alike, those of other clips are not")
    places: float = setting(
        0.0,
        minimum=0,
        doc="close to what the image model predicts for each frame when its caption says where things are; Moving "
        "Shapes only, and an image model that knows words for places",
    )
    tokens_first: int = setting(
        0,
        minimum=0,
        doc="steps in which the frame tokens learn alone, without the image model, to be the words for places in the "
        "captions of frames: three words for each object; Moving Shapes only, like `places`",
    )
    queue: int = setting(1024, minimum=1, doc="features of earlier clips that L_DC compares with")
