"""An embedded model from nothing by one command: its recipes one after the other, samples, their scores, one file.

What is finished is not done again, so that the same command goes on after an interrupt.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from . import checkpoints, distributed
from .build import start_or_resume
from .config import read_table
from .data.moving_shapes import held_out_captions
from .evaluate import evaluate_folder
from .export import export
from .recipe_files import RecipeFile
from .sample import Sampler, write_samples
from .settings import read_section, setting

log = logging.getLogger(__name__)
SCORES, SAMPLES = "scores.json", "samples"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Recipes that build on each other; the run of each is in runs/<its name>, where the next one looks for it."""

    task: Literal["chain"] = setting("chain", doc="train several recipes, one after the other")
    recipes: tuple[str, ...] = setting(
        doc="recipe files beside this one, in their order; the last one's run is exported"
    )
    captions: int = setting(256, minimum=1, doc="held-out captions of which videos are made and scored")
    steps: int = setting(50, minimum=1, doc="DDIM steps of these videos")
    guidance: float = setting(2.0, minimum=0, doc="of these videos")
    seed: int = setting(0, minimum=0, doc="of captions and videos")

    def __post_init__(self) -> None:
        """Raises ValueError without recipes."""
        if not self.recipes:
            raise ValueError("recipes: found none, expected at least one")


def read_chain(path: Path) -> Chain | None:
    """The chain that a file describes, None for those of single recipes; raises RecipeError."""
    table = read_table(path)
    if table.get("task") != "chain":
        return None
    chain: Chain = read_section(Chain, table, f"{path}: ")
    return chain


def run_chain(chain: Chain, folder: Path, out: Path, device: torch.device) -> int | None:
    """Train what is not finished of the recipes in a folder, then measure and export the last run.

    Files are written to `out`. Returns the signal that ended it early.
    """
    runs = [Path("runs") / Path(name).stem for name in chain.recipes]
    files = [RecipeFile(folder / name, []) for name in chain.recipes]  # a mistake in the last one is found first
    for file, run in zip(files, runs, strict=True):
        if _is_finished(run):
            log.info("%s is finished", run)
            continue
        with file.named():
            trainer = start_or_resume(file.recipe, run, device)
        ended_by = trainer.run()
        if ended_by is not None:
            return ended_by
    if distributed.is_first():
        _measure_and_export(chain, runs[-1], out, device)
    distributed.wait()
    return None


def _is_finished(run: Path) -> bool:
    if not checkpoints.exist(run):
        return False
    state: dict[str, Any] = checkpoints.read_plain(checkpoints.newest(run))
    finished: bool = state["step"] >= state["recipe"]["run"]["steps"]
    return finished


def _measure_and_export(chain: Chain, run: Path, out: Path, device: torch.device) -> None:
    scores = out / SCORES
    if not scores.exists():
        captions = held_out_captions(chain.captions, chain.seed)
        write_samples(Sampler(run, device), captions, out / SAMPLES, chain.steps, chain.guidance, chain.seed)
        scores.write_text(json.dumps(evaluate_folder(out / SAMPLES), indent=1) + "\n", encoding="utf-8")
    table = json.loads(scores.read_text(encoding="utf-8"))
    print("\n".join(f"{name:<20}{value}" for name, value in table.items() if name != "videos"))
    file = out / f"{run.name}.safetensors"
    export([run], file, scores=scores)
    print(f"{file}, with these scores in it; the videos are in {out / SAMPLES}")
