"""Clips from a folder of videos, animated pictures or folders of frames, with captions."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..sections import FolderData
from ..settings import InputError, RecipeError
from .caption_files import find_list, read_list
from .captions import Split
from .sources import (
    ANIMATIONS,
    PICTURES,
    VIDEOS,
    AnimatedPicture,
    Extent,
    FrameFolder,
    Picture,
    Source,
    VideoFile,
    find_pictures,
    find_sources,
)
from .video_clips import VideoClips, frame_numbers

SHOWN = 3
"""Unusable clips that a warning names."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """A source with its caption and, where it was opened already, its extent."""

    source: Source
    caption: str
    extent: Extent | None = None


class FolderClips(VideoClips):
    """Map-style data set of (frames uint8 (T, H, W, 3), caption).

    Where a clip begins in its video follows seed, epoch and index. Videos that cannot be used are left out with a
    warning that counts them; RecipeError when too few remain. With `check = false` they are found when they are read.
    """

    settings: FolderData
    sources: list[Source]

    _sources = staticmethod(find_sources)
    """All that is in a folder."""

    def __init__(self, settings: FolderData, split: Split) -> None:
        self.folder = Path(settings.path)
        found = self._listed(settings)
        if settings.check is not False:
            found = self._usable(settings, found, warn=split == "train")  # both splits see the same list
        elif len(found) <= settings.held_out:
            raise RecipeError(
                f"data.path: {len(found)} clips in {self.folder}, expected more than data.held_out = "
                f"{settings.held_out}"
            )
        border = len(found) - settings.held_out
        chosen = found[:border] if split == "train" else found[border:]
        # Clips of a size lie side by side; the order is otherwise that of the paths.
        buckets = [_bucket(settings, each.extent) for each in chosen]
        order = sorted(range(len(chosen)), key=lambda place: buckets[place])
        chosen, self.buckets = [chosen[place] for place in order], [buckets[place] for place in order]
        super().__init__(settings, [each.source for each in chosen], [each.caption for each in chosen])
        changes = [place for place in range(1, len(order)) if self.buckets[place] != self.buckets[place - 1]]
        self._borders = [0, *changes, len(order)]
        self.extents = [each.extent for each in chosen]
        self.unchecked = settings.check is False

    @property
    def lengths(self) -> list[int]:
        """Frames of the videos that have been opened."""
        return [extent.frames for extent in self.extents if extent is not None]

    def extent(self, index: int) -> Extent:
        """How long a video is."""
        return self.extents[index] or self.sources[index].extent()

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width of a clip's frames: those of its bucket."""
        return self.settings.frame_sizes[self.buckets[index]]

    def borders(self) -> list[int]:
        """Numbers of the clips at which another bucket begins, 0 and the number of clips included."""
        return self._borders

    def name(self, index: int) -> str:
        """A source inside the folder."""
        return self.sources[index].path.relative_to(self.folder).as_posix()

    def _listed(self, settings: FolderData) -> list[_Found]:
        """All sources of the folder, or those that a list of captions names, sorted by path."""
        if settings.captions is None:
            captions = read_captions(self.folder, self._sources)
            sources = self._sources(self.folder)
            placed = ((source, source.path.relative_to(self.folder).as_posix()) for source in sources)
            return [_Found(source, captions.get(name, "")) for source, name in placed]
        if not self.folder.is_dir():
            raise RecipeError(f"{self.folder}: no such folder of videos")
        path = find_list(self.folder, settings.captions)
        assert path is not None
        found: dict[Path, _Found] = {}
        missing: list[str] = []
        for names, caption in read_list(path):
            there = [source for name in names if name and (source := self._source_at(self.folder / name))]
            if there:
                found[there[0].path] = _Found(there[0], caption)
            else:
                missing.append(names[0])
        if missing:
            log.warning(
                "%d of %d videos of %s are not in %s: %s",
                len(missing),
                len(missing) + len(found),
                path,
                self.folder,
                _shown(missing, ", "),
            )
        return [found[place] for place in sorted(found)]

    @staticmethod
    def _source_at(path: Path) -> Source | None:
        """What a list names: a file by its kind, or a folder of frames."""
        if path.suffix.lower() in VIDEOS and path.is_file():
            return VideoFile(path)
        if path.suffix.lower() in ANIMATIONS and path.is_file():
            return AnimatedPicture(path)
        return FrameFolder(path) if path.is_dir() else None

    def _usable(self, settings: FolderData, listed: list[_Found], warn: bool) -> list[_Found]:
        """Sources that are long enough and can be decoded, with their lengths."""
        sources = [each.source for each in listed]
        with ThreadPoolExecutor() as pool:
            inspected = pool.map(lambda source: _inspect(source, source.stamp()), sources)
            quiet = len(sources) < 1000
            extents = list(tqdm(inspected, "checking videos", len(sources), disable=quiet, dynamic_ncols=True))
        usable: list[_Found] = []
        wrong: list[str] = []
        for each, extent in zip(listed, extents, strict=True):
            try:
                if isinstance(extent, str):
                    raise InputError(extent)
                frame_numbers(settings, extent, each.source.path, None)
                usable.append(_Found(each.source, each.caption, extent))
            except InputError as error:
                wrong.append(str(error))
        reasons = _shown(wrong, "; ")
        if len(usable) <= settings.held_out:
            raise RecipeError(
                f"data.path: {len(usable)} usable clips in {self.folder}, expected more than data.held_out = "
                f"{settings.held_out}" + (f" ({len(wrong)} left out: {reasons})" if wrong else "")
            )
        if wrong and warn:
            log.warning("%d of %d clips in %s are left out: %s", len(wrong), len(sources), self.folder, reasons)
        return usable


class PictureClips(FolderClips):
    """The same of images: each is a clip of one frame."""

    _sources = staticmethod(find_pictures)

    @staticmethod
    def _source_at(path: Path) -> Source | None:
        return Picture(path) if path.suffix.lower() in PICTURES and path.is_file() else None


def read_captions(folder: Path, sources: Callable[[Path], list[Source]] = find_sources) -> dict[str, str]:
    """Captions by name inside the folder: from captions.jsonl (keys file, caption) or captions.csv, else one .txt
    beside each.

    Raises RecipeError when the folder does not exist or a line of a list is not usable.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder of videos")
    listed = find_list(folder)
    if listed is None:
        texts = ((source.path, source.captions_file()) for source in sources(folder))
        return {
            path.relative_to(folder).as_posix(): text.read_text(encoding="utf-8").strip()
            for path, text in texts
            if text.exists()
        }
    return {name: caption for names, caption in read_list(listed) for name in names}


def _bucket(settings: FolderData, extent: Extent | None) -> int:
    """The frame size that is nearest in shape to a video's own."""
    sizes = settings.frame_sizes
    if extent is None or len(sizes) == 1:
        return 0
    shape = extent.width / extent.height
    return min(range(len(sizes)), key=lambda place: abs(math.log(shape * sizes[place][0] / sizes[place][1])))


def _shown(texts: list[str], between: str) -> str:
    return between.join(texts[:SHOWN]) + (" ..." if len(texts) > SHOWN else "")


@functools.cache
def _inspect(source: Source, stamp: tuple[int, ...]) -> Extent | str:
    """The extent of a source, or what is wrong with it; looked at once until its stamp changes."""
    try:
        return source.extent()
    except InputError as error:
        return str(error)
