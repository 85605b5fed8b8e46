"""What a recipe says of the pictures that steer a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class EdgeHints:
    """Edges of frames, as ComfyUI's Canny node draws them; the defaults are that node's."""

    low_threshold: float = setting(0.4, minimum=0.01, maximum=0.99, doc="weakest edge that goes on from a strong one")
    high_threshold: float = setting(0.8, minimum=0.01, maximum=0.99, doc="weakest edge that is drawn by itself")
