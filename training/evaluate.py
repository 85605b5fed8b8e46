"""Measuring generated videos against their captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..kernels.analysis.content import amount_features, measured_appearance, measured_motion
from ..kernels.analysis.flicker import flicker
from ..kernels.networks.video_autoencoder import VideoAutoencoder
from ..model_loaders.checkpoint import VAE, read
from .data.captions import ClipSpec, parse_caption
from .data.clips import to_pixels
from .data.folder import read_captions
from .data.tracker import Tracked, agreement, track
from .data.video_files import read_video
from .distance import FrechetMeter
from .settings import InputError

ATTRIBUTES = ("colour", "shape", "direction", "background")


def evaluate_folder(folder: Path, model: Path | None = None, frechet: FrechetMeter | None = None) -> dict[str, Any]:
    """Mean of every score over the captioned videos of a folder, and the score of each video.

    With a model file also the motion factor, measured between latents of its autoencoder; with a meter also the Frechet
    distance of all videos.

    Raises InputError for a folder without captioned videos, captions of videos that are not there, a caption outside
    the grammar, a file without frames, a model without an autoencoder of single frames, videos that the meter refuses.
    """
    motion = _motion_meter(model) if model else None
    captions = read_captions(folder)
    if not captions:
        raise InputError(f"{folder}: no video with a caption; expected captions.jsonl with lines of file and caption")
    missing = sorted(name for name in captions if not (folder / name).exists())
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(captions)} captioned videos missing: {', '.join(missing)}")
    distance = frechet.measure(folder, captions) if frechet else {}
    rows = [
        {"file": name, "caption": text, **_measure(folder / name, text, motion)}
        for name, text in tqdm(sorted(captions.items()), desc="reading videos", dynamic_ncols=True)
    ]
    measures = [name for name in rows[0] if name not in ("file", "caption") and all(name in row for row in rows)]
    means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in measures}
    rounded = {name: round(mean, 4) for name, mean in means.items()}
    return {"clips": len(rows), **rounded, **distance, "videos": rows}


def _motion_meter(path: Path) -> Callable[[np.ndarray], float]:
    """Measures the mean motion factor of frames (T, H, W, 3) (HiGen, Eq. 1)."""
    checkpoint = read(path)
    network, latent = checkpoint.component(VAE).build().eval(), checkpoint.latent
    if not isinstance(network, VideoAutoencoder) or network.config.downsample[0] != 1:
        raise InputError(f"{path}: its autoencoder has no latent for each frame, which motion factors are measured on")

    @torch.no_grad()
    def measure(frames: np.ndarray) -> float:
        mean, _ = network.moments(to_pixels(torch.from_numpy(frames)[None]))
        return float(measured_motion((latent.scale * (mean + latent.shift)).transpose(1, 2)).mean())

    return measure


def _measure(video: Path, caption: str, motion: Callable[[np.ndarray], float] | None) -> dict[str, float]:
    """The scores of a video, how far its objects travel and how much their amount of colour changes, end to end.

    From three frames on its flicker, in levels of 0 to 255. With a picture beside the video, which it was made around:
    PSNR (dB) of the frame that is nearest to it.
    """
    spec, frames = parse_caption(caption), read_video(video)[0]
    found = track(frames)
    appearance = measured_appearance(amount_features(torch.from_numpy(frames).float().div(255)), "cosine")
    size = frames.shape[2], frames.shape[1]
    travels = [float(np.linalg.norm((item.centres[-1] - item.centres[0]) / size)) for item in found.objects]
    measures = {"travel": float(np.mean(travels or [0.0])), "change": 1 - float(appearance[0, -1])}
    if len(frames) > 2:
        measures["flicker"] = float(flicker(torch.from_numpy(frames).float()))
    if motion is not None:
        measures["motion"] = motion(frames)
    picture = video.with_suffix(".png")
    if picture.exists():
        measures["picture_psnr"] = max(_psnr(frame, _read_picture(picture, frame.shape)) for frame in frames)
    return {**asdict(agreement(found, spec)), **{name: round(value, 4) for name, value in measures.items()}}


def _read_picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    if pixels.shape != shape:
        raise InputError(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, its video has {shape[1]} x {shape[0]}")
    return pixels


def _psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = np.mean((found.astype(np.float64) - wanted) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def compare(video: Path, caption: str) -> tuple[list[str], bool]:
    """Lines that put what the tracker read beside what the caption says, and whether all of ATTRIBUTES agree.

    Raises InputError for a caption outside the grammar or a file without frames.
    """
    wanted, found = parse_caption(caption), track(read_video(video)[0])
    result = agreement(found, wanted)
    lines = [
        f"{name:<12}{'ok' if getattr(result, name) else 'WRONG':<7}"
        f"found {_read(found, name):<28}expected {_said(wanted, name)}"
        for name in (*ATTRIBUTES, "speed")
    ]
    return lines, all(getattr(result, name) for name in ATTRIBUTES)


def _read(found: Tracked, name: str) -> str:
    if name == "background":
        return str(found.background)
    return " and ".join(_word(getattr(item, name), name) for item in found.objects) or "no object"


def _said(wanted: ClipSpec, name: str) -> str:
    if name == "background":
        return wanted.background
    return " and ".join(_word(getattr(item, name), name) for item in wanted.objects)


def _word(value: str | None, name: str) -> str:
    return "medium" if name == "speed" and value == "" else str(value)
