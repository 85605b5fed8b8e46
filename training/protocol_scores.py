"""Measuring a folder of generated videos by a paper's protocol.

Shapes: N videos, T frames, H, W pixels, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels.analysis.classes import inception_score
from ..kernels.analysis.consistency import caption_similarity, frame_consistency
from ..kernels.analysis.frechet import frechet_distance
from ..kernels.analysis.kernel_distance import kernel_distance
from .data.sources import Source, cropped
from .feature_networks import CaptionNetwork, ClipNetwork, FrameNetwork
from .protocols import BESIDE_REAL, FILES, NEEDS, Folder, Protocol, Weights, check_folder, check_real
from .settings import InputError

DIGITS = 5


@dataclass
class _Features:
    """What networks say of generated videos: of every stretch of clips (N, D), of frames (N T, D)."""

    stretches: list[Tensor]
    frames: Tensor
    logits: Tensor
    clipsim: list[float]
    consistency: list[float]


def score_folder(
    protocol: Protocol,
    folder: Path,
    reference: Path | None,
    weights: Mapping[Weights, Path],
    *,
    partial: bool,
    device: torch.device,
    seed: int = 0,
) -> dict[str, Any]:
    """The protocol's measures of a folder's videos, and what the folder misses of the protocol.

    Args:
        protocol, folder: as above.
        reference: real videos, of which clips are drawn at random.
        weights: files of the networks.
        partial: measure what can be measured although something is missing.
        device: of the networks.
        seed: of which real clips are drawn.

    Raises:
        InputError: something is missing and `partial` is not set, with a list of all of it; or nothing can be measured.
        CheckpointError: unusable weights.
    """
    made, real = check_folder(protocol, folder), check_real(protocol, reference)
    missing = [*made.missing, *real.missing]
    missing += [
        f"no weights for {', '.join(m for m in protocol.measures if NEEDS[m] == name)}: {FILES[name]}"
        for name in dict.fromkeys(NEEDS[measure] for measure in protocol.measures)
        if name not in weights
    ]
    if missing and not partial:
        lines = "".join(f"\n- {line}" for line in missing)
        raise InputError(
            f"{folder}: not what the protocol asks for ({protocol.source}):{lines}\nwith --partial, what there is is "
            "measured, which compares with no paper's numbers"
        )
    measures = [m for m in protocol.measures if NEEDS[m] in weights]
    if len(made.videos) < 2 or len(real.videos) < 2:
        measures = [measure for measure in measures if measure not in BESIDE_REAL]
    if not any(made.captions):
        measures = [measure for measure in measures if measure != "clipsim"]
    if not measures:
        raise InputError(f"{folder}: nothing can be measured" + "".join(f"\n- {line}" for line in missing))
    scores = _Scores(protocol, made, real, {name: weights[name] for name in {NEEDS[m] for m in measures}}, device, seed)
    table = {name: value for name, value in scores.table().items() if name.split("_")[0] in measures}
    real_videos = min(len(real.videos), len(made.videos))
    counts = {"protocol": protocol.source, "videos": len(made.videos), "real_videos": real_videos}
    networks = {NEEDS[measure]: _name(weights[NEEDS[measure]]) for measure in measures}
    return {**counts, **table, "networks": networks, **({"missing": missing} if missing else {})}


class _Scores:
    """The networks of a protocol, and the videos that they look at one after the other."""

    def __init__(
        self,
        protocol: Protocol,
        made: Folder,
        real: Folder,
        weights: Mapping[Weights, Path],
        device: torch.device,
        seed: int,
    ) -> None:
        self.protocol, self.made, self.real, self.seed = protocol, made, real, seed
        self.clips = ClipNetwork(weights["i3d"], device) if "i3d" in weights else None
        self.frames = FrameNetwork(weights["inception"], device) if "inception" in weights else None
        self.captions = CaptionNetwork(weights["clip"], device) if "clip" in weights else None

    def table(self) -> dict[str, float | list[float]]:
        """Every measure by name; of several runs the mean, and the deviation as NAME_deviation."""
        made = self._look(zip(self.made.videos, self.made.captions, strict=True))
        table: dict[str, float | list[float]] = {}
        if len(made.logits):
            table["is"] = _short(inception_score(made.logits))
        for name, values in (("clipsim", made.clipsim), ("consistency", made.consistency)):
            if values:
                table[name] = _short(float(np.mean(values)))
        if len(self.real.videos) > 1 and len(self.made.videos) > 1:
            table |= self._beside_real(made)
        return table

    def _beside_real(self, made: _Features) -> dict[str, float | list[float]]:
        runs: list[dict[str, list[float]]] = []
        for run in range(self.protocol.runs):
            clips, frames = self._real(run)
            values: dict[str, list[float]] = {}
            if self.clips is not None:
                values["fvd"] = [frechet_distance(part, clips) for part in made.stretches]
                values["kvd"] = [kernel_distance(part, clips) for part in made.stretches]
            if self.frames is not None:
                values["fid"] = [frechet_distance(made.frames, frames)]
            runs.append(values)
        table: dict[str, float | list[float]] = {}
        for name in runs[0]:
            drawn = np.array([values[name] for values in runs])
            means = [_short(float(value)) for value in drawn.mean(axis=0)]
            table[name] = means if len(means) > 1 else means[0]
            if len(runs) > 1:
                table[f"{name}_deviation"] = _short(float(drawn.std()))
        return table

    def _real(self, run: int) -> tuple[Tensor, Tensor]:
        """Features of clips (N, D) and frames of as many real videos as there are generated ones."""
        rng = np.random.default_rng((self.seed, run))
        chosen = rng.permutation(len(self.real.videos))[: len(self.made.videos)].tolist()
        starts = rng.integers(np.array(self.real.lengths)[chosen] - self.protocol.frames + 1)
        clips, frames = [], []
        for number, start in tqdm(zip(chosen, starts.tolist(), strict=True), "real clips", len(chosen), leave=False):
            pixels = self._read(self.real.videos[number], range(start, start + self.protocol.frames))
            if self.clips is not None:
                clips.append(self.clips(pixels))
            if self.frames is not None:
                frames.append(self.frames(pixels)[0])
        return _stacked(clips), torch.cat(frames) if frames else torch.empty(0)

    def _look(self, videos: Iterable[tuple[Source, str]]) -> _Features:
        """Features of the generated videos, whose stretches are their first frames, or all in turn."""
        protocol = self.protocol
        stretches = protocol.length // protocol.frames
        clips: list[list[Tensor]] = [[] for _ in range(stretches)]
        frames, logits, found = [], [], _Features([], torch.empty(0), torch.empty(0), [], [])
        for source, caption in tqdm(videos, "generated videos", len(self.made.videos), leave=False):
            pixels = self._read(source, range(stretches * protocol.frames))
            if self.clips is not None:
                for place, part in enumerate(np.split(pixels, stretches)):
                    clips[place].append(self.clips(part))
            if self.frames is not None:
                features, classes = self.frames(pixels)
                frames.append(features)
                logits.append(classes)
            if self.captions is not None:
                shown = self.captions.frames(pixels)
                found.consistency.append(float(frame_consistency(shown).mean()))
                if caption:
                    found.clipsim.append(float(caption_similarity(shown, self.captions.caption(caption))))
        found.stretches = [_stacked(part) for part in clips if part]
        if frames:
            found.frames, found.logits = torch.cat(frames), torch.cat(logits)
        return found

    def _read(self, source: Source, chosen: range) -> np.ndarray:
        size = self.protocol.size
        return np.stack([cropped(frame, size, size) for frame in source.frames(chosen)])


def _name(path: Path) -> str:
    """A network's file, and the beginning of its hash; of a folder its name."""
    return path.name if path.is_dir() else f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
