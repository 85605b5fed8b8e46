"""What a recipe says of pictures."""

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
