"""Inputs of a network beside noise and text, the same for all branches of guidance.

Shapes: B videos, T frames, S = T-1 steps from frame to frame, C channels, H, W latent size.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .compat import conds, patcher_extension

CUES = "weft_cues"
"""Key of a conditioning under which cues reach `VideoModel.extra_conds`."""


class Cue(conds.CONDRegular):
    """The same for all frames, whatever its shape: ComfyUI would cut other conditions where a size looks like time."""

    def in_window(self, window: object) -> "Cue":
        """For a context window."""
        return self


class PictureCue(Cue):
    """A picture for all frames, (B, C, H, W); cut with an area of the conditioning."""

    def process_cond(self, batch_size: int, area: tuple[int, ...] | None = None, **kwargs: object) -> "PictureCue":
        """For a batch, inside an area (sizes, then offsets, of T, H, W)."""
        picture = self.cond
        if area is not None:
            half = len(area) // 2
            for axis, size, offset in ((2, area[half - 2], area[-2]), (3, area[half - 1], area[-1])):
                picture = picture.narrow(axis, offset, size)
        return self._copy_with(_tiled(picture, batch_size))


class FrameCue(Cue):
    """A value or row for each frame, (B, T, ...), cut with context windows and areas in time."""

    def process_cond(self, batch_size: int, area: tuple[int, ...] | None = None, **kwargs: object) -> "FrameCue":
        """For a batch, inside an area (sizes, then offsets, of T, H, W)."""
        cue = self if area is None or len(area) < 6 else self.at(list(range(area[3], area[3] + area[0])))
        return self._copy_with(_tiled(cue.cond, batch_size))

    def in_window(self, window: object) -> "FrameCue":
        """For a context window; a frame that ComfyUI puts in front of it for causal models has its own value."""
        anchor = getattr(window, "causal_anchor_index", None)
        frames = list(window.index_list)  # type: ignore[attr-defined]
        return self.at(frames if anchor is None or anchor < 0 else [anchor, *frames])

    def at(self, frames: list[int]) -> "FrameCue":
        """For some of the frames.

        Raises:
            ValueError: a single one, of which the network would make a picture.
        """
        if len(frames) < 2:
            raise ValueError("A context window or an area in time has one frame: give it at least two, else no video.")
        return self._copy_with(self._taken(frames))

    def _taken(self, frames: list[int]) -> Tensor:
        return self.cond[:, frames]


class StepCue(FrameCue):
    """A value for each step, (B, S)."""

    def _taken(self, frames: list[int]) -> Tensor:
        """All steps from one frame to the next together; the last one where time begins anew."""
        pairs = zip(frames, frames[1:], strict=False)
        return torch.stack([self.cond[:, a:b].sum(1) if b > a else self.cond[:, -1] for a, b in pairs], 1)


def with_cues(model: object, key: str, make: Callable[[Tensor], Mapping[str, conds.CONDRegular]]) -> object:
    """A clone of a MODEL whose network gets cues in every branch; they replace those under the same key.

    `make` is called with the noise (B, C, T, H, W) before the first step: the place to refuse what does not fit it.
    """
    patched = without_cues(model, key)

    def give(executor: Callable[..., Tensor], noise: Tensor, *args: object, **kwargs: object) -> Tensor:
        cues = make(noise)
        for branch in executor.class_obj.conds.values():  # type: ignore[attr-defined]
            for cond in branch:
                cond[CUES] = {**cond.get(CUES, {}), **cues}
        return executor(noise, *args, **kwargs)

    patched.add_wrapper_with_key(patcher_extension.WrappersMP.OUTER_SAMPLE, key, give)  # type: ignore[attr-defined]
    return patched


def without_cues(model: object, key: str) -> object:
    """A clone of a MODEL without the cues of a key."""
    patched = model.clone()  # type: ignore[attr-defined]
    patched.remove_wrappers_with_key(patcher_extension.WrappersMP.OUTER_SAMPLE, key)
    return patched


def _tiled(values: Tensor, batch_size: int) -> Tensor:
    """One set of values for all videos, or one for each."""
    return values.repeat(-(-batch_size // len(values)), *[1] * (values.ndim - 1))[:batch_size]
