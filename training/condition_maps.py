"""What a unified ControlNet is shown of clips: the image itself, edges, soft edges, depth.

Canny edges are computed. Networks draw the paper's HED edges and depth; of folders of clips they are read from folders
of their maps, of Moving Shapes something like them is drawn here.

Shapes: B clips, T frames, H, W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .control_settings import ConditionMaps
from .control_task import edges_of
from .data.captions import Split
from .data.clips import Clips, open_clips, stack_videos
from .data.folder import FolderClips
from .sections import Data, FolderData, MovingShapesData
from .settings import RecipeError

COMPUTED = ("image", "canny")
DRAWN = ("hed", "depth")


class ClipMaps:
    """Maps of the clips of a split, in the order of the clips."""

    def __init__(self, data: Data, split: Split, conditions: tuple[str, ...], settings: ConditionMaps) -> None:
        """Raises RecipeError for conditions that there are no maps of, or folders of maps that do not fit the clips."""
        self.conditions, self.settings = conditions, settings
        self.clips = open_clips(data, split)
        self._folders: dict[str, Clips] = {}
        for name in conditions:
            if name in COMPUTED:
                continue
            path = getattr(settings, name, "")
            if isinstance(data, FolderData) and path:
                if data.check is False:
                    raise RecipeError(
                        "data.check: found false beside folders of maps, expected videos that are opened first: maps "
                        "are compared with them"
                    )
                maps = FolderClips(replace(data, path=path, captions=None), split)
                self._folders[name] = _matching(maps, self.clips, name)
            elif not isinstance(data, MovingShapesData) or name not in DRAWN:
                expected = f"hints.{name} with a folder of such maps" if name in DRAWN else "image, canny, hed or depth"
                raise RecipeError(f"conditions: there are no maps of {name!r}, expected {expected}")

    def __call__(self, condition: int, indices: list[int]) -> Tensor:
        """Maps (B, T, 3, H, W) in 0..1 of clips, as their first epoch sees them."""
        name = self.conditions[condition]
        clips = self._folders.get(name, self.clips)
        videos = stack_videos(clips, indices)[0].movedim(-1, 2).float().div(255)
        if name in self._folders:
            return videos
        if name == "image":
            return videos[:, :1].expand_as(videos)
        frames = videos.flatten(0, 1)
        drawn = {"canny": lambda: edges_of(frames, self.settings), "hed": lambda: soft_edges(frames)}
        maps = drawn.get(name, lambda: distance_from_background(frames))()
        return maps.expand(-1, 3, -1, -1).unflatten(0, videos.shape[:2])


def soft_edges(frames: Tensor) -> Tensor:
    """Frames (N, 3, H, W) in 0..1 -> (N, 1, H, W): how much their colours change over two pixels, smoothed."""
    padded = F.pad(frames, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength = torch.maximum(across.abs(), down.abs()).amax(dim=1, keepdim=True)
    return F.avg_pool2d(F.pad(strength, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def distance_from_background(frames: Tensor) -> Tensor:
    """Frames (N, 3, H, W) in 0..1 -> (N, 1, H, W): 1 where the colour is none of the background's, as what is near."""
    background = frames.flatten(2).median(dim=2).values[..., None, None]
    return ((frames - background).abs().amax(dim=1, keepdim=True) > 0.1).float()


def _matching(maps: FolderClips, clips: Clips, name: str) -> FolderClips:
    assert isinstance(clips, FolderClips)
    found, expected = ([(source.path.stem, length) for source, length in zip(part.sources, part.lengths, strict=True)]
                       for part in (maps, clips))  # fmt: skip
    if found != expected:
        raise RecipeError(
            f"hints.{name}: found {len(found)} videos in {maps.folder}, expected those of data.path by their names, as "
            "long as they are"
        )
    return maps
