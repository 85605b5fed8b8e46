"""What a recipe says of pictures: what they are called, and who else knows them."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class PictureCaptions:
    """What pictures are called, when they are frames of clips."""

    places: float = setting(
        0.0,
        minimum=0,
        maximum=1,
        doc="share of pictures of Moving Shapes whose captions say where things are instead of where they go",
    )


@dataclass(frozen=True, kw_only=True)
class PictureTeacher:
    """A trained HiGen that is learned from: what it predicts is the mean of what noise and caption leave open."""

    path: str = setting("", doc="bundle or run of a HiGen on latents of the same autoencoder; empty: none")
    weight: float = setting(3.0, above=0, doc="of a taught picture, beside 1 for one that is learned from its noise")
    other_shapes: float = setting(
        0.6,
        minimum=0,
        maximum=1,
        doc="share of taught pictures with other shapes in the caption: where a picture still shows its shape, only "
        "these say what the word does",
    )
    styles: tuple[str, ...] = setting(("flat",), doc="drawing styles of Moving Shapes that it knows")
