"""Clips from a folder of videos with captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..config import FolderData
from ..settings import RecipeError
from .captions import Split

SUFFIXES = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif"}


class FolderClips:
    """Map-style data set of (frames uint8 (T, H, W, 3), caption); where a clip begins follows seed and index."""

    def __init__(self, settings: FolderData, split: Split) -> None:
        self.settings = settings
        folder = Path(settings.path)
        captions = read_captions(folder)
        videos = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
        border = len(videos) - settings.held_out
        if border < 1:
            raise RecipeError(
                f"data.path: {len(videos)} videos in {folder}, expected more than data.held_out = {settings.held_out}"
            )
        self.videos = videos[:border] if split == "train" else videos[border:]
        self.captions = [captions.get(path.name, "") for path in self.videos]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        settings, path = self.settings, self.videos[index]
        rng = np.random.default_rng((settings.seed, index))
        needed = (settings.frames - 1) * settings.stride + 1
        total = _count_frames(path)
        if total < needed:
            raise RecipeError(f"{path}: {total} frames, expected at least {needed} (data.frames, data.stride)")
        start = int(rng.integers(total - needed + 1))
        chosen = range(start, start + needed, settings.stride)
        decoded = enumerate(_decode(path, start + needed))
        return np.stack([_square(frame, settings.size) for at, frame in decoded if at in chosen]), self.captions[index]


def read_captions(folder: Path) -> dict[str, str]:
    """Captions by file name: from captions.jsonl (keys file, caption), else one .txt beside each video.

    Raises RecipeError when the folder does not exist or a line of captions.jsonl is not usable.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder of videos")
    listed = folder / "captions.jsonl"
    if not listed.exists():
        texts = {text.stem: text.read_text(encoding="utf-8").strip() for text in folder.glob("*.txt")}
        return {path.name: texts[path.stem] for path in folder.glob("*") if path.stem in texts}
    captions: dict[str, str] = {}
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            captions[row["file"]] = row["caption"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise RecipeError(f'{listed}, line {number}: expected {{"file": ..., "caption": ...}}') from error
    return captions


def _count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(1 for _ in container.decode(stream))


def _decode(path: Path, count: int) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        for _, frame in zip(range(count), container.decode(video=0), strict=False):
            yield frame


def _square(frame: av.VideoFrame, size: int) -> np.ndarray:
    """Short side to `size`, centre crop: uint8 (size, size, 3)."""
    factor = Fraction(size, min(frame.width, frame.height))
    width, height = max(size, round(frame.width * factor)), max(size, round(frame.height * factor))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])
