"""Where clips come from: videos, animated pictures, folders of frames, videos in archives; and frames cut to size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from ..settings import InputError
from .video_files import PackedFile, count_frames, read_frames

VIDEOS = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif"}
ANIMATIONS = {".webp"}
"""FFmpeg does not decode them."""
IMAGES = {".jpg", ".jpeg", ".png"}
PICTURES = IMAGES | {".webp"}


class Extent(NamedTuple):
    """How long a video is: frames, and frames per second (0: not known); and how large, in pixels."""

    frames: int
    rate: float
    width: int = 0
    height: int = 0


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

    def extent(self) -> Extent:
        """Frames and their rate; raises InputError when it cannot be decoded."""
        return Extent(*count_frames(self.path))

    def frames(self, chosen: Sequence[int]) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        return read_frames(self.path, chosen)


@dataclass(frozen=True)
class AnimatedPicture(MediaFile):
    """A picture of several frames."""

    def extent(self) -> Extent:
        """Frames and their rate, by what the first one says; raises InputError when that cannot be decoded."""
        with _opened(self.path) as picture:
            picture.load()
            milliseconds = picture.info.get("duration", 0)
            return Extent(getattr(picture, "n_frames", 1), 1000 / milliseconds if milliseconds else 0.0, *picture.size)

    def frames(self, chosen: Sequence[int]) -> list[av.VideoFrame]:
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

    def extent(self) -> Extent:
        """Frames, which have no rate; raises InputError when the first one is no image."""
        images = self._images()
        first = _read_image(images[0])
        return Extent(len(images), 0.0, first.width, first.height)

    def frames(self, chosen: Sequence[int]) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        images = self._images()
        return [_read_image(images[number]) for number in chosen]

    def _images(self) -> list[Path]:
        found = (path for path in self.path.iterdir() if path.suffix.lower() in IMAGES)
        return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)])


@dataclass(frozen=True)
class PackedVideo:
    """A clip's source: a video inside a .tar file."""

    path: PackedFile

    def stamp(self) -> tuple[int, ...]:
        """Numbers that change with the archive: size, time of the last change (ns)."""
        status = self.path.archive.stat()
        return status.st_size, status.st_mtime_ns

    def extent(self) -> Extent:
        """Frames and their rate; raises InputError when it cannot be decoded."""
        return Extent(*count_frames(self.path))

    def frames(self, chosen: Sequence[int]) -> list[av.VideoFrame]:
        """The chosen frames; raises InputError when one cannot be decoded."""
        return read_frames(self.path, chosen)


@dataclass(frozen=True)
class Picture(MediaFile):
    """A clip's source: one image, which is its only frame."""

    def extent(self) -> Extent:
        """One frame; raises InputError when it cannot be decoded."""
        with _opened(self.path) as image:
            image.load()
            return Extent(1, 0.0, *image.size)

    def frames(self, chosen: Sequence[int]) -> list[av.VideoFrame]:
        """That frame; raises InputError when it cannot be decoded."""
        return [_read_image(self.path)]


Source = VideoFile | AnimatedPicture | FrameFolder | Picture
"""What lies in a folder."""


def find_pictures(folder: Path) -> list[Source]:
    """The images in a folder and in the folders in it, sorted by path."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return [Picture(path) for path in sorted(found) if path.suffix.lower() in PICTURES]


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
