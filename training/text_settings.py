"""What a recipe says of its text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class CaptionText:
    """A caption encoder trained together with the UNet; its vocabulary comes from the data."""

    kind: Literal["captions"] = setting("captions", doc="a small encoder, trained together with the UNet")
    width: int = setting(minimum=1, doc="width of a token, equal to the UNet's context width")
    layers: int = setting(minimum=1, doc="transformer layers")
    heads: int = setting(minimum=1, doc="attention heads")
    max_tokens: int = setting(minimum=3, doc="tokens of a caption, start and end included")


@dataclass(frozen=True, kw_only=True)
class GivenText:
    """The caption encoder of another model, frozen, as Stable Diffusion has that of CLIP."""

    kind: Literal["given"] = setting("given", doc="the caption encoder of another model, frozen")
    path: str = setting(doc="bundle, run folder or checkpoint that holds it")


@dataclass(frozen=True, kw_only=True)
class ClipText:
    """CLIP's text encoder, frozen: the last hidden state of all tokens."""

    kind: Literal["clip"] = setting("clip", doc="CLIP's text encoder, frozen")
    path: str = setting(doc="folder of a CLIP text model with its tokenizer, in transformers' layout")


@dataclass(frozen=True, kw_only=True)
class T5Text:
    """T5's encoder, frozen: the states of 77 tokens, padding included."""

    kind: Literal["t5"] = setting("t5", doc="T5's encoder, frozen")
    path: str = setting(doc="folder of a T5 encoder with its tokenizer, in transformers' layout")


@dataclass(frozen=True, kw_only=True)
class ImageModelText:
    """The caption encoder that an image model was trained with, frozen."""

    kind: Literal["image_model"] = setting("image_model", doc="the caption encoder of the image model, frozen")


@dataclass(frozen=True, kw_only=True)
class DenoiserText:
    """The caption encoder that a denoiser was trained with, frozen."""

    kind: Literal["denoiser"] = setting("denoiser", doc="the caption encoder of the denoiser, frozen")
