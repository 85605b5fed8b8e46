"""How near reconstructed videos are to their originals: PSNR and SSIM in RGB and YUV, and the flicker of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels.analysis.fidelity import WINDOW, psnr, ssim, to_yuv
from ..kernels.analysis.flicker import flicker
from .data.sources import VideoFile, find_sources
from .data.video_files import read_video
from .settings import InputError


def score_reconstructions(folder: Path, originals: Path) -> dict[str, Any]:
    """Means over videos of the means over their frames, of the videos in two folders that have the same names.

    Raises:
        InputError: no video, one without an original, or one of another size or length than its original.
    """
    for path in (folder, originals):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder of videos")
    names = [s.path.relative_to(folder) for s in find_sources(folder) if isinstance(s, VideoFile)]
    if not names:
        raise InputError(f"{folder}: no videos")
    missing = [name.as_posix() for name in names if not (originals / name).is_file()]
    if missing:
        raise InputError(
            f"{originals}: {len(missing)} of {len(names)} videos have no original there: {', '.join(missing[:3])}"
        )
    rows = [_compare(folder / name, originals / name) for name in tqdm(names, "comparing videos", leave=False)]
    means = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}
    return {"videos": len(rows), **means}


def _compare(path: Path, original: Path) -> dict[str, float]:
    found, wanted = _read(path), _read(original)
    if found.shape != wanted.shape:
        raise InputError(
            f"{path}: {_shape(found)}, its original {original} has {_shape(wanted)}; expected the same in both"
        )
    if min(found.shape[1:3]) < WINDOW:
        raise InputError(f"{path}: {_shape(found)}, SSIM takes at least {WINDOW} x {WINDOW}")
    row = {}
    for name, pair in {"rgb": (found, wanted), "yuv": (to_yuv(found), to_yuv(wanted))}.items():
        row[f"psnr_{name}"], row[f"ssim_{name}"] = float(psnr(*pair).mean()), float(ssim(*pair).mean())
    if len(found) > 2:
        row["flicker"], row["flicker_original"] = (255 * float(flicker(video)) for video in (found, wanted))
    return row


def _read(path: Path) -> Tensor:
    """(T, H, W, 3) in 0..1."""
    return torch.from_numpy(read_video(path)[0]).float().div(255)


def _shape(video: Tensor) -> str:
    frames, height, width, _ = video.shape
    return f"{frames} frames of {width} x {height}"
