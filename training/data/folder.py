"""Clips from a folder of videos, animated pictures or folders of frames, with captions."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..sections import FolderData, frame_size
from ..settings import InputError, RecipeError
from .captions import Split
from .video_files import count_frames, read_frames

VIDEOS = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif"}
ANIMATIONS = {".webp"}
"""FFmpeg does not decode them."""
IMAGES = {".jpg", ".jpeg", ".png"}
SHOWN = 3
"""Unusable clips that a warning names."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MediaFile:
    """A clip's source: one file."""

    path: Path

    def captions_file(self) -> Path:
        """Where a caption of this video alone lies."""
        return self.path.with_suffix(".txt")

    def stamp(self) -> tuple[int, ...]:
        """Numbers that change with the file: size, time of the last change (ns)."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class VideoFile(MediaFile):
    """A video."""

    def length(self) -> int:
        """Frames; raises InputError when it cannot be decoded."""
        return count_frames(self.path)

    def frames(self, chosen: range) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        return read_frames(self.path, chosen)


@dataclass(frozen=True)
class AnimatedPicture(MediaFile):
    """A picture of several frames."""

    def length(self) -> int:
        """Frames; raises InputError when the first one cannot be decoded."""
        with _opened(self.path) as picture:
            picture.load()
            count: int = getattr(picture, "n_frames", 1)
        return count

    def frames(self, chosen: range) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        frames = []
        with _opened(self.path) as picture:
            for number in chosen:
                picture.seek(number)
                frames.append(av.VideoFrame.from_image(picture.convert("RGB")))
        return frames


@dataclass(frozen=True)
class FrameFolder:
    """A clip's source: a folder of images, one per frame, in the order of the numbers in their names."""

    path: Path

    def captions_file(self) -> Path:
        """Where a caption of this folder alone lies: beside it."""
        return self.path.with_name(f"{self.path.name}.txt")

    def stamp(self) -> tuple[int, ...]:
        """Numbers that change with the files: how many, their size, time of the last change (ns)."""
        found = [path.stat() for path in self._images()]
        newest = max(status.st_mtime_ns for status in [*found, self.path.stat()])
        return len(found), sum(status.st_size for status in found), newest

    def length(self) -> int:
        """Frames; raises InputError when the first one is no image."""
        images = self._images()
        _read_image(images[0])
        return len(images)

    def frames(self, chosen: range) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        images = self._images()
        return [_read_image(images[number]) for number in chosen]

    def _images(self) -> list[Path]:
        found = (path for path in self.path.iterdir() if path.suffix.lower() in IMAGES)
        return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)])


Source = VideoFile | AnimatedPicture | FrameFolder


class FolderClips:
    """Map-style data set of (frames uint8 (T, H, W, 3), caption).

    Where a clip begins in its video follows seed, epoch and index. Videos that cannot be used are left out with a
    warning that counts them; RecipeError when too few remain.
    """

    def __init__(self, settings: FolderData, split: Split) -> None:
        self.settings = settings
        self.folder = Path(settings.path)
        self.needed = (settings.frames - 1) * settings.stride + 1
        """Frames of a video that a clip spans."""
        captions = read_captions(self.folder)
        usable = self._usable(warn=split == "train")  # both splits see the same list
        border = len(usable) - settings.held_out
        chosen = usable[:border] if split == "train" else usable[border:]
        self.sources = [source for source, _ in chosen]
        self.lengths = [length for _, length in chosen]
        self.captions = [captions.get(self._name(source), "") for source in self.sources]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.load(index)

    def load(self, index: int, epoch: int = 0) -> tuple[np.ndarray, str]:
        """A clip as an epoch sees it; raises InputError when its video cannot be decoded."""
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        start = int(rng.integers(self.lengths[index] - self.needed + 1))
        frames = self.sources[index].frames(range(start, start + self.needed, self.settings.stride))
        return np.stack([cropped(frame, *frame_size(self.settings)) for frame in frames]), self.captions[index]

    def texts(self, count: int) -> list[str]:
        """The captions of the first `count` clips."""
        return self.captions[:count]

    def fingerprint(self, count: int) -> list[object]:
        """What the first `count` clips are made of: names, sizes, times of change and captions."""
        pairs = zip(self.sources[:count], self.captions, strict=False)
        return [(self._name(source), source.stamp(), caption) for source, caption in pairs]

    def _name(self, source: Source) -> str:
        return source.path.relative_to(self.folder).as_posix()

    def _usable(self, warn: bool) -> list[tuple[Source, int]]:
        """Sources that are long enough and can be decoded, with their lengths."""
        sources = find_sources(self.folder)
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda source: _inspect(source, source.stamp()), sources)
            quiet = len(sources) < 1000
            lengths = list(tqdm(found, "checking videos", len(sources), disable=quiet, dynamic_ncols=True))
        usable: list[tuple[Source, int]] = []
        wrong: list[str] = []
        for source, length in zip(sources, lengths, strict=True):
            if isinstance(length, str):
                wrong.append(length)
            elif length < self.needed:
                wrong.append(f"{source.path}: {length} frames, expected at least {self.needed}")
            else:
                usable.append((source, length))
        reasons = "; ".join(wrong[:SHOWN]) + (" ..." if len(wrong) > SHOWN else "")
        if len(usable) <= self.settings.held_out:
            raise RecipeError(
                f"data.path: {len(usable)} usable clips in {self.folder}, expected more than data.held_out = "
                f"{self.settings.held_out}" + (f" ({len(wrong)} left out: {reasons})" if wrong else "")
            )
        if wrong and warn:
            log.warning("%d of %d clips in %s are left out: %s", len(wrong), len(sources), self.folder, reasons)
        return usable


def find_sources(folder: Path) -> list[Source]:
    """The videos in a folder and in the folders in it, and all folders in it that hold images, sorted by path."""
    found: list[Source] = []
    for place, _, names in os.walk(folder):
        path = Path(place)
        found += [VideoFile(path / name) for name in names if Path(name).suffix.lower() in VIDEOS]
        found += [AnimatedPicture(path / name) for name in names if Path(name).suffix.lower() in ANIMATIONS]
        if path != folder and any(Path(name).suffix.lower() in IMAGES for name in names):
            found.append(FrameFolder(path))
    return sorted(found, key=lambda source: source.path)


def read_captions(folder: Path) -> dict[str, str]:
    """Captions by name inside the folder: from captions.jsonl (keys file, caption), else one .txt beside each video.

    Raises RecipeError when the folder does not exist or a line of captions.jsonl is not usable.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder of videos")
    listed = folder / "captions.jsonl"
    if not listed.exists():
        texts = ((source.path, source.captions_file()) for source in find_sources(folder))
        return {
            path.relative_to(folder).as_posix(): text.read_text(encoding="utf-8").strip()
            for path, text in texts
            if text.exists()
        }
    captions: dict[str, str] = {}
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            captions[row["file"]] = row["caption"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise RecipeError(f'{listed}, line {number}: expected {{"file": ..., "caption": ...}}') from error
    return captions


@functools.cache
def _inspect(source: Source, stamp: tuple[int, ...]) -> int | str:
    """Frames of a source, or what is wrong with it; looked at once until its stamp changes."""
    try:
        return source.length()
    except InputError as error:
        return str(error)


def _parts(name: str) -> Sequence[str]:
    """Text and numbers of a name in turn, text first."""
    return re.split(r"(\d+)", name)


def _read_image(path: Path) -> av.VideoFrame:
    with _opened(path) as image:
        return av.VideoFrame.from_image(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture; what is wrong with it becomes an InputError with its name."""
    try:
        with Image.open(path) as image:
            yield image
    except (EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error


def cropped(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """A frame resized to cover height and width, centre crop: uint8 (height, width, 3)."""
    factor = max(Fraction(width, frame.width), Fraction(height, frame.height))
    wide, high = max(width, round(frame.width * factor)), max(height, round(frame.height * factor))
    pixels = frame.to_ndarray(format="rgb24", width=wide, height=high)
    top, left = (high - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
