"""Clips from .tar files as webdataset writes them: files of one sample stand one behind the other and share their name.

Where each video lies is noted once for every archive. Then clips are read from it by number, whatever their order, and
a position in training is one number: it is resumed bit for bit, on any number of processes, which shuffling readers of
streams cannot promise. Read in their order, archives are read from end to end.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ..sections import ShardData
from ..settings import RecipeError
from .captions import Split
from .sources import VIDEOS, PackedVideo
from .video_clips import VideoClips
from .video_files import PackedFile

FORMAT = 1
TEXTS = ("caption", "text")
"""Keys of a sample's .json that may hold its caption."""
log = logging.getLogger(__name__)


@dataclass
class Index:
    """What is in an archive.

    Attributes:
        stamp: size and time of the last change (ns) of the archive.
        videos: name, first byte, bytes and caption of each video.
        without: samples that have no video.
        damage: what is wrong with the archive behind them; empty: nothing.
    """

    stamp: list[int]
    videos: list[tuple[str, int, int, str]]
    without: int = 0
    damage: str = ""
    format: int = FORMAT


class ShardClips(VideoClips):
    """Map-style data set of (frames uint8 (T, H, W, 3), caption), in the order of the archives.

    Videos are opened when they are read: those that cannot be used are replaced by the next one, and counted.
    """

    unchecked = True

    def __init__(self, settings: ShardData, split: Split) -> None:
        """Raises RecipeError when there are no archives, or too few videos in them."""
        archives = find_archives(settings.path)
        folder = Path(settings.index) if settings.index else None
        with ThreadPoolExecutor() as pool:
            indices = list(pool.map(lambda archive: open_index(archive, folder), archives))
        found = [
            (PackedVideo(PackedFile(archive, name, first, size)), caption)
            for archive, index in zip(archives, indices, strict=True)
            for name, first, size, caption in index.videos
        ]
        if split == "train":
            _warn(archives, indices)
        if len(found) <= settings.held_out:
            raise RecipeError(
                f"data.path: {len(found)} videos in {len(archives)} archives of {settings.path}, expected more than "
                f"data.held_out = {settings.held_out}"
            )
        border = len(found) - settings.held_out
        chosen = found[:border] if split == "train" else found[border:]
        super().__init__(settings, [video for video, _ in chosen], [caption for _, caption in chosen])
        counts = itertools.groupby(video.path.archive for video, _ in chosen)
        self.runs = [sum(1 for _ in group) for _, group in counts]
        """Clips of each archive, in their order."""
        self.buffer = settings.buffer

    def name(self, index: int) -> str:
        """The archive's own name and the video's."""
        packed = self.sources[index].path
        assert isinstance(packed, PackedFile)
        return f"{packed.archive.name}/{packed.name}"


def find_archives(pattern: str) -> list[Path]:
    """The .tar files of a folder, or those that a pattern with {00..99} and * names, sorted.

    Raises RecipeError when there are none, or one that {00..99} names is missing.
    """
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
    elif re.search(r"\{\d+\.\.\d+\}", pattern):
        found = [Path(name) for name in _expanded(pattern)]
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise RecipeError(
                f"data.path: {len(missing)} of {len(found)} archives of {pattern} are missing: {', '.join(missing[:3])}"
            )
    else:
        found = sorted(Path(name) for name in glob.glob(pattern))
    if not found:
        raise RecipeError(f"data.path: no .tar files in {pattern}; expected a folder of them, or a pattern of names")
    return found


def open_index(archive: Path, folder: Path | None) -> Index:
    """What is in an archive: as it was noted in `folder` (none: beside it), else read from it and noted there.

    Where nothing can be written, it is read again the next time.
    """
    status = archive.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    path = (folder or archive.parent) / f"{archive.name}.index.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["stamp"] == stamp and table["format"] == FORMAT:
            return Index(**{**table, "videos": [tuple(video) for video in table["videos"]]})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, of another archive, or written by another version
    index = read_archive(archive, stamp)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(index)), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        log.warning("%s: what is in it cannot be noted there (%s); name a folder by data.index", path, error.strerror)
    return index


def read_archive(archive: Path, stamp: list[int]) -> Index:
    """Go from header to header; what stands before a damaged one is used."""
    index = Index(stamp, [])
    key, video, caption = "", None, ""

    def finish() -> None:
        if video is not None:
            index.videos.append((*video, caption))
        elif key:
            index.without += 1

    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                if f"{path.parent}/{stem}" != key:
                    finish()
                    key, video, caption = f"{path.parent}/{stem}", None, ""
                suffix = f".{suffix.lower()}"
                if suffix in VIDEOS:
                    if member.offset_data + member.size > stamp[0]:
                        raise tarfile.ReadError("unexpected end of data")
                    video = (member.name, member.offset_data, member.size)
                elif suffix == ".txt" or (suffix == ".json" and not caption):
                    caption = _caption(file.extractfile(member).read(), suffix) or caption  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError) as error:
        index.damage = str(error)
    if video is not None or not index.damage:  # what is cut off is no sample without a video
        finish()
    return index


def _caption(content: bytes, suffix: str) -> str:
    text = content.decode("utf-8", errors="replace").strip()
    if suffix == ".txt":
        return text
    try:
        table = json.loads(text)
    except json.JSONDecodeError:
        return ""
    found = (table.get(key) for key in TEXTS) if isinstance(table, dict) else ()
    return next((each.strip() for each in found if isinstance(each, str)), "")


def _expanded(pattern: str) -> Iterator[str]:
    """All names of a pattern with ranges such as {00..99}; the width of the first number is kept."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def _warn(archives: list[Path], indices: list[Index]) -> None:
    damaged = [f"{path.name}: {index.damage}" for path, index in zip(archives, indices, strict=True) if index.damage]
    if damaged:
        more = " ..." if len(damaged) > 3 else ""
        log.warning("%d of %d archives are damaged: %s%s", len(damaged), len(archives), "; ".join(damaged[:3]), more)
    without = sum(index.without for index in indices)
    if without:
        log.warning("%d samples have no video and are left out", without)
    silent = sum(not caption for index in indices for *_, caption in index.videos)
    if silent:
        log.warning("%d videos have no caption (.txt, or .json with caption or text)", silent)
