"""How many clips a second the trainer's data sets give, and whether training waits for them: `python -m
weft.benchmarks.loading`.

Shapes: B clips, T frames.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..training.batches import BatchQueue, ShuffledClips
from ..training.build import build_task
from ..training.config import read_recipe, read_table
from ..training.data.clips import Clips, open_clips, stack_readable
from ..training.data.video_files import torchcodec_decoder, write_video
from ..training.sections import FolderData, ShardData
from .cli import prepare
from .report import environment

RECIPE = Path(__file__).resolve().parent.parent / "training" / "recipes" / "demo_lvdm_autoencoder.toml"
WIDTH, HEIGHT, FPS = 596, 336, 24
"""As most of WebVid's videos."""


@dataclass(frozen=True)
class Rate:
    """What a data set gave.

    Attributes:
        source: kind of data set.
        clips: how many were loaded.
        seconds: wall time.
        cpu_seconds: processor time of all threads.
        per_second, per_core_second: clips over both.
    """

    source: str
    clips: int
    seconds: float
    cpu_seconds: float
    per_second: float
    per_core_second: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parse(arguments)
    where = environment(torch.device("cpu")) | {
        "cores": os.cpu_count(),
        "decoder": "torchcodec" if torchcodec_decoder() else "PyAV",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or _write_videos(Path(temporary) / "videos", options.videos)
        archives = _pack(folder, Path(temporary) / "archives")
        shape = {"size": options.size, "frames": options.frames, "held_out": 0}
        sets: dict[str, Clips] = {
            "folder": open_clips(FolderData(path=str(folder), check=False, **shape), "train"),
            "archives": open_clips(ShardData(path=str(archives), **shape), "train"),
        }
        rates = [measure(name, clips, options.clips, options.batch) for name, clips in sets.items()]
        waiting = waiting_share(folder, options.steps)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"clips of {options.frames} frames of {options.size} x {options.size}, batches of {options.batch}")
    for rate in rates:
        print(
            f"{rate.source:<10}{rate.per_second:8.1f} clips/s{rate.per_core_second:8.1f} clips/s of a core"
            f"{rate.seconds:8.1f} s for {rate.clips}"
        )
    print(f"{RECIPE.stem}: {100 * waiting:.1f} % of a step is waiting for clips")
    if options.json:
        table = {"environment": where, "rates": [asdict(rate) for rate in rates], "waiting": round(waiting, 4)}
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(source: str, clips: Clips, count: int, batch: int) -> Rate:
    """Load `count` clips in the order of training, in batches; the first batch is not counted."""
    order = ShuffledClips(len(clips), seed=0)
    numbers, epochs = order.take(0, count + batch)
    parts = list(zip(numbers.split(batch), epochs.split(batch), strict=True))
    for part in parts[:1]:
        stack_readable(clips, *(values.tolist() for values in part))
    started, worked = time.perf_counter(), time.process_time()
    for part in parts[1:]:
        stack_readable(clips, *(values.tolist() for values in part))
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return Rate(source, count, round(seconds, 3), round(cpu, 3), round(count / seconds, 2), round(count / cpu, 2))


def waiting_share(folder: Path, steps: int) -> float:
    """Share of the time of training steps on a folder that passes before their batch is there.

    The recipe of the embedded autoencoder; the first step is not counted.
    """
    recipe = read_recipe(read_table(RECIPE), RECIPE.name)
    data = FolderData(path=str(folder), size=recipe.data.sides["size"], frames=recipe.data.frames, held_out=0)
    recipe = replace(recipe, data=data)
    with tempfile.TemporaryDirectory() as run:
        task = build_task(recipe, Path(run), torch.device("cpu"))
    order = ShuffledClips(task.clip_count, recipe.seed)
    queue = BatchQueue(task.batch, order, recipe.run.batch_size, 0)
    waited, whole = [], []
    try:
        for step in range(steps + 1):
            started = time.perf_counter()
            batch = queue.take()
            waited.append(time.perf_counter() - started)
            sum(task.losses(batch, step).objectives.values(), torch.zeros(())).backward()
            whole.append(time.perf_counter() - started)
    finally:
        queue.close()
    return float(np.sum(waited[1:]) / np.sum(whole[1:]))


def _write_videos(folder: Path, count: int) -> Path:
    """Videos of three seconds: soft shapes that drift, so that they compress as filmed ones do."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        waves = rng.uniform(0.005, 0.05, (3, 2)), rng.uniform(-0.3, 0.3, 3)
        frames = np.empty((3 * FPS, HEIGHT, WIDTH, 3), np.uint8)
        for frame in range(len(frames)):
            for channel, ((down, along), speed) in enumerate(zip(*waves, strict=True)):
                frames[frame, :, :, channel] = 127.5 + 120 * np.sin(down * y + along * x + speed * frame)
        write_video(folder / f"{number:04d}.mp4", frames, FPS)
        (folder / f"{number:04d}.txt").write_text(f"waves {number}\n", encoding="utf-8")
    return folder


def _pack(folder: Path, archives: Path) -> Path:
    """All files of a folder in one archive, those of a video one behind the other."""
    archives.mkdir(parents=True)
    with tarfile.open(archives / "00000.tar", "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.add(path, path.relative_to(folder).as_posix())
    return archives


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m weft.benchmarks.loading",
        description="Clips a second that the trainer's data sets give, and whether a small recipe waits for them.",
    )
    parser.add_argument("--folder", type=Path, help="videos to load; without, some are made, as large as WebVid's")
    parser.add_argument("--videos", type=int, default=16, help="how many are made (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=128, help="clips that are loaded (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="of a frame in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="clips that are loaded together (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps of the recipe (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    options = parser.parse_args(arguments)
    if min(options.videos, options.clips, options.frames, options.batch, options.steps) < 1 or options.size < 8:
        parser.error("numbers must be at least 1, --size at least 8")
    if options.json:
        prepare(options.json, parser)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
