"""Whether a super-resolution of Show-1 leaves seams where its windows meet, on held-out clips, without ComfyUI.

Shapes: B clips, C colours, T frames, H, W pixels; values in -1..1.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from ..kernels.analysis.seams import seam_ratio
from ..kernels.networks.show1 import PixelUNet
from ..kernels.sampling import cascade
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from .config import Data
from .data.clips import open_clips, stack_videos
from .export import Trained
from .opened import open_networks
from .sample import encode_captions
from .sample_show1 import RELEASED_LEVEL, PixelStage
from .settings import InputError, Table, read_section
from .show1_task import shrunk

BATCH = 4
WAYS = {"carried": True, "apart": False}
"""Windows that begin with the frame that the one before ended with, and such that know nothing of each other."""


def measure_seams(path: Path, count: int, steps: int, guidance: float, seed: int, device: torch.device) -> Table:
    """Medians of the seam ratio (`kernels.analysis.seams`) over held-out clips of a model's data set, and all ratios.

    Of the clips themselves, whose motion is not even either; of what the model makes of them from a quarter of their
    size with windows "carried", as released, and "apart", from the same noise.

    Args:
        path: run folder, checkpoint or exported file of a super-resolution on pixels.
        count: clips.
        steps, guidance, seed: of each sampling.
        device: where it is sampled.

    Raises:
        InputError: another model, a data set that it does not name or that has too few held-out clips, or clips of one
            window. CheckpointError for damaged files.
    """
    stage, data = _open(path, device)
    clips = open_clips(data, "held_out")
    if count > len(clips):
        raise InputError(f"--count: found {count}, the data set has {len(clips)} held-out clips")
    starts = cascade.window_starts(data.frames)
    if len(starts) == 1:
        raise InputError(
            f"{path}: its clips have {data.frames} frames, which is one window; seams are between several of "
            f"{cascade.WINDOW}"
        )
    ratios: dict[str, list[float]] = {"clips": [], **{way: [] for way in WAYS}}
    for start in tqdm(range(0, count, BATCH), desc="sampling", dynamic_ncols=True):
        videos, captions = stack_videos(clips, list(range(start, min(start + BATCH, count))))
        frames = videos.movedim(-1, 1).float().div(127.5).sub(1).to(device)
        made = {"clips": frames}
        for way, carry in WAYS.items():
            made[way] = _upscaled(stage, frames, captions, steps, guidance, seed + start, carry)
        for name, video in made.items():
            # As they are saved: what lies outside of the range is no difference that is seen.
            ratios[name] += seam_ratio(video.movedim(1, -1).clamp(-1, 1), starts).tolist()
    medians = {name: round(float(torch.tensor(found).median()), 4) for name, found in ratios.items()}
    return {"videos": count, **medians, "ratios": ratios}


@torch.no_grad()
def _upscaled(
    stage: PixelStage, frames: Tensor, captions: list[str], steps: int, guidance: float, seed: int, carry: bool
) -> Tensor:
    """What the stage makes of clips (B, C, T, H, W) that were shrunk; same shape."""
    encode = partial(encode_captions, stage.text_encoder)
    text = torch.cat([encode(captions), encode([""] * len(captions))])
    size = (*frames.shape[:2], min(cascade.WINDOW, frames.shape[2]), *frames.shape[3:])
    generator = torch.Generator().manual_seed(seed)
    noise, augmentation = (torch.randn(size, generator=generator).to(frames) for _ in range(2))
    sample = partial(stage.sample, text=text, steps=steps, guidance=guidance)
    small = shrunk(frames, cascade.UPSCALING)
    return cascade.super_resolve(small, noise, augmentation, sample, level=stage.level, carry=carry)


def _open(path: Path, device: torch.device) -> tuple[PixelStage, Data]:
    opened = open_networks(path)
    network, text_encoder = opened.networks.get(MODEL), opened.networks.get(TEXT_ENCODER)
    if not isinstance(network, PixelUNet) or network.config.stage != "sr1":
        raise InputError(f"{path}: expected a super-resolution of Show-1 on pixels (stage sr1)")
    if text_encoder is None:
        raise InputError(f"{path}: its text encoder is not its own, which captions are read by")
    stage = PixelStage(network.to(device), text_encoder.to(device), opened.schedule, RELEASED_LEVEL)
    return stage, _data_of(path)


def _data_of(path: Path) -> Data:
    """What a model was trained on: a run's recipe, or what an exported file says."""
    if path.is_dir() or path.suffix == ".pt":
        data: Data = Trained(path).recipe.data
        return data
    with safe_open(path, "pt") as file:
        said = (file.metadata() or {}).get("dataset")
    if said is None:
        raise InputError(f"{path}: does not say which data set it was trained on; name the run folder instead")
    data = read_section(Data, json.loads(said), f"{path}: dataset.")
    return data
