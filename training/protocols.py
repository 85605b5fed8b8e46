"""How papers measure generated videos: how many of them, of which captions, beside how many real ones; and whether a
folder follows that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .data.folder import read_captions
from .data.sources import Source, find_sources
from .settings import InputError

Measure = Literal["fvd", "kvd", "fid", "is", "clipsim", "consistency"]
Weights = Literal["i3d", "inception", "clip"]
NEEDS: dict[Measure, Weights] = {
    "fvd": "i3d",
    "kvd": "i3d",
    "fid": "inception",
    "is": "inception",
    "clipsim": "clip",
    "consistency": "clip",
}
"""The network whose features a measure is taken in."""
FILES: dict[Weights, str] = {
    "i3d": "--i3d FILE: i3d_pretrained_400.pt of the released video metrics",
    "inception": "--inception FILE: weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
    "clip": "--clip DIR: a CLIP model as transformers saves it; papers use openai/clip-vit-base-patch32",
}
BESIDE_REAL: tuple[Measure, ...] = ("fvd", "kvd", "fid")
SHOWN = 3


@dataclass(frozen=True)
class Protocol:
    """What a table of a paper was measured on.

    Attributes:
        source: who describes it.
        videos: generated ones, and as many real ones.
        captions: different ones among them; 0 where none are read.
        per_caption: videos of each caption at least.
        frames, size: of what is compared; frames are resized to cover a square of this side, and cut to it.
        runs: times that real clips are drawn anew; the mean and the deviation are reported.
        length: frames that a generated video has at least; all whole stretches of `frames` are measured one by one.
    """

    source: str
    videos: int
    measures: tuple[Measure, ...]
    captions: int = 0
    per_caption: int = 1
    frames: int = 16
    size: int = 256
    runs: int = 1
    length: int = 16


PROTOCOLS = {
    "ucf101": Protocol(
        "UCF-101 as Show-1 measures it: one sentence for each of the 101 classes, 2048 videos, at least 20 of each",
        videos=2048,
        captions=101,
        per_caption=20,
        measures=("fvd", "kvd", "is"),
        runs=10,
    ),
    "msrvtt": Protocol(
        "MSR-VTT as Show-1 and HiGen measure it: one caption of each of the 2990 test videos",
        videos=2990,
        captions=2990,
        measures=("fvd", "fid", "clipsim", "consistency"),
    ),
    "lvdm": Protocol(
        "LVDM's short videos without captions (sky, taichi, UCF-101): 2048 of 16 frames, real clips drawn 10 times",
        videos=2048,
        measures=("fvd", "kvd"),
        runs=10,
    ),
    "lvdm_long": Protocol(
        "LVDM's long videos: 512 of 1024 frames, one value for every 16 frames in turn",
        videos=512,
        measures=("fvd", "kvd"),
        length=1024,
    ),
}


@dataclass(frozen=True)
class Folder:
    """Videos that can be used, with captions where there are such, and what the protocol misses, in words."""

    videos: tuple[Source, ...]
    captions: tuple[str, ...]
    lengths: tuple[int, ...]
    missing: tuple[str, ...]


def check_folder(protocol: Protocol, path: Path) -> Folder:
    """Look at all generated videos; raises InputError for no folder or no usable video in it."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder of videos")
    found, lengths, missing = _usable(path, protocol.length)
    texts = read_captions(path) if protocol.captions else {}
    captions = [texts.get(source.path.relative_to(path).as_posix(), "") for source in found]
    if len(found) < protocol.videos:
        missing.append(f"{len(found)} videos, expected {protocol.videos}")
    if protocol.captions:
        missing += _check_captions(protocol, found, captions)
    return Folder(tuple(found), tuple(captions), tuple(lengths), tuple(missing))


def check_real(protocol: Protocol, path: Path | None) -> Folder:
    """Look at all real videos; without a folder, or one without usable videos, there are none."""
    if path is None:
        return Folder((), (), (), ("no real videos: --reference DIR",))
    if not path.is_dir():
        raise InputError(f"--reference {path}: no such folder of videos")
    try:
        found, lengths, missing = _usable(path, protocol.frames)
    except InputError as error:
        return Folder((), (), (), (str(error),))
    if len(found) < protocol.videos:
        missing.append(f"{path}: {len(found)} real videos, expected at least {protocol.videos}")
    return Folder(tuple(found), ("",) * len(found), tuple(lengths), tuple(missing))


def _check_captions(protocol: Protocol, videos: Sequence[Source], captions: Sequence[str]) -> list[str]:
    without = [source.path.name for source, text in zip(videos, captions, strict=True) if not text]
    counts = Counter(text for text in captions if text)
    missing = []
    if without:
        missing.append(
            f"{len(without)} videos have no caption in captions.jsonl, captions.csv or a .txt ({_named(without)})"
        )
    # Several videos of one text are no mistake where each caption is a real video's own.
    texts = len(counts) if protocol.per_caption > 1 else sum(counts.values())
    if texts < protocol.captions:
        missing.append(f"{texts} captions, expected {protocol.captions}")
    few = [f"{text!r} has {count}" for text, count in counts.items() if count < protocol.per_caption]
    if few:
        missing.append(f"{len(few)} captions with fewer than {protocol.per_caption} videos ({_named(few)})")
    return missing


def _usable(path: Path, needed: int) -> tuple[list[Source], list[int], list[str]]:
    """Videos that can be decoded and are long enough, their lengths, and what is wrong with the others."""
    sources = find_sources(path)
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(_length, sources))
    kept = [(source, length) for source, length in zip(sources, lengths, strict=True) if _long(length, needed)]
    unreadable = [length for length in lengths if isinstance(length, str)]
    short = [
        f"{source.path.name} has {length}"
        for source, length in zip(sources, lengths, strict=True)
        if isinstance(length, int) and length < needed
    ]
    missing = [f"{len(unreadable)} videos cannot be read ({_named(unreadable)})"] if unreadable else []
    missing += [f"{len(short)} videos have fewer than {needed} frames ({_named(short)})"] if short else []
    if not kept:
        raise InputError(f"{path}: no usable video" + "".join(f"; {text}" for text in missing))
    return [source for source, _ in kept], [length for _, length in kept if isinstance(length, int)], missing


def _length(source: Source) -> int | str:
    try:
        return source.extent().frames
    except InputError as error:
        return str(error)


def _long(length: int | str, needed: int) -> bool:
    return isinstance(length, int) and length >= needed


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
