"""Clips cut out of videos: which frames, how large, and those that cannot be read.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ..sections import VideoData
from ..settings import InputError
from .sources import Extent, PackedVideo, Source, cropped

TRIES = 256
"""Clips one after the other that cannot be read: then something is wrong with all of them."""
log = logging.getLogger(__name__)


class VideoClips:
    """Map-style data set of (frames uint8 (T, H, W, 3), caption): what folders and archives have in common."""

    unchecked = False
    """Whether videos are opened only when they are read: those that cannot be used are then replaced."""

    def __init__(self, settings: VideoData, sources: Sequence[Source | PackedVideo], captions: Sequence[str]) -> None:
        self.settings, self.sources, self.captions = settings, sources, captions
        self.skipped: set[int] = set()
        """Clips that could not be read so far."""

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.load(index)

    def load(self, index: int, epoch: int = 0) -> tuple[np.ndarray, str]:
        """A clip as an epoch sees it; raises InputError when its video cannot be decoded or is too short."""
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        source = self.sources[index]
        chosen = frame_numbers(self.settings, self.extent(index), source.path, rng)
        frames = source.frames(chosen)
        return np.stack([cropped(frame, *self.frame_size(index)) for frame in frames]), self.captions[index]

    def load_readable(self, index: int, epoch: int = 0) -> tuple[np.ndarray, int]:
        """A clip and its number: the first one that can be read, from `index` on.

        Raises InputError when it cannot be read and all were opened before, or none of many can.
        """
        for place in range(index, index + min(TRIES, len(self))):
            # Only videos that were not opened are replaced, and these all have one size.
            try:
                return self.load(place % len(self), epoch)[0], place % len(self)
            except InputError as error:
                if not self.unchecked:
                    raise
                self._skip(place % len(self), error)
        raise InputError(f"none of the clips {index} to {place % len(self)} could be read; {self.sources[index].path}")

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width of a clip's frames, which neighbours share as long as they can."""
        return self.settings.frame_sizes[0]

    def borders(self) -> list[int]:
        """Numbers of the clips from which on frames have another size, 0 and the number of clips included."""
        return [0, len(self)]

    def extent(self, index: int) -> Extent:
        """How long a video is; raises InputError when it cannot be decoded."""
        return self.sources[index].extent()

    def texts(self, count: int) -> list[str]:
        """The captions of the first `count` clips."""
        return list(self.captions[:count])

    def name(self, index: int) -> str:
        """What a source is called, on every machine alike."""
        return str(self.sources[index].path)

    def fingerprint(self, count: int) -> list[object]:
        """What the first `count` clips are made of: names, sizes, times of change and captions."""
        shown = range(min(count, len(self)))
        return [(self.name(index), self.sources[index].stamp(), self.captions[index]) for index in shown]

    def _skip(self, index: int, error: InputError) -> None:
        if index in self.skipped:
            return
        self.skipped.add(index)
        count = len(self.skipped)
        if count <= 3 or str(count).strip("0") == "1":
            log.warning("%d of %d clips could not be read and were replaced by the next: %s", count, len(self), error)


def frame_numbers(settings: VideoData, extent: Extent, path: object, rng: np.random.Generator | None) -> list[int]:
    """Numbers of the frames of a clip in its video, ascending: from a start that is drawn; without generator, 0.

    Every n-th frame by `stride`; by `fps` those that are nearest in time, all where the video has fewer a second.

    Raises InputError for a video that is too short, or does not say its frame rate where `fps` asks for it.
    """
    step = float(settings.stride)
    if settings.fps is not None:
        if not extent.rate:
            raise InputError(f"{path}: says no frames per second, which data.fps needs; expected data.stride")
        step = max(1.0, extent.rate / settings.fps)
    places = [int(number * step + 0.5) for number in range(settings.frames)]
    needed = places[-1] + 1
    if extent.frames < needed:
        raise InputError(f"{path}: {extent.frames} frames, expected at least {needed}")
    start = 0 if rng is None else int(rng.integers(extent.frames - needed + 1))
    return [start + place for place in places]
