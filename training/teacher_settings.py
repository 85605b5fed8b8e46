"""What a recipe says of a model that is learned from."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A trained HiGen: what it predicts is the mean of all that captions and noise leave open."""

    path: str = setting("", doc="bundle or run of a HiGen on latents of the same autoencoder; empty: none")
    weight: float = setting(3.0, above=0, doc="of what is taught, beside 1 for what is learned from its noise")
    other_captions: float = setting(
        0.6,
        minimum=0,
        maximum=1,
        doc="share of what is taught that gets another training caption, with other shapes (pictures) or directions "
        "(clips): where frames still show these, only other captions say what the words do",
    )
    styles: tuple[str, ...] = setting(("flat",), doc="drawing styles of Moving Shapes that it knows")
