"""What a recipe says of the pictures that steer a ControlNet."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class EdgeHints:
    """Edges of frames, as ComfyUI's Canny node draws them; the defaults are that node's."""

    low_threshold: float = setting(0.4, minimum=0.01, maximum=0.99, doc="weakest edge that goes on from a strong one")
    high_threshold: float = setting(0.8, minimum=0.01, maximum=0.99, doc="weakest edge that is drawn by itself")


@dataclass(frozen=True, kw_only=True)
class ConditionMaps(EdgeHints):
    """Maps of clips that networks have drawn; edges are computed."""

    hed: str = setting("", doc="folder with HED edges of the videos in data.path, under the same names")
    depth: str = setting("", doc="folder with depth maps of the videos in data.path, under the same names")


@dataclass(frozen=True, kw_only=True)
class DenoiserSource:
    """The frozen denoiser."""

    path: str = setting(doc="run folder, checkpoint or exported file of a denoiser")
