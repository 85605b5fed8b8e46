"""Checkpoints of a training run: written whole or not at all, with everything that makes a resumed run exact."""

from __future__ import annotations

import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .settings import RecipeError

State = dict[str, Any]


def save(folder: Path, step: int, state: State, keep: int) -> Path:
    """Write step-N.pt through a temporary file and remove all but the newest `keep`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    for old in _all(folder)[:-keep]:
        old.unlink()
    return path


def exist(run: Path) -> bool:
    """Whether a run folder has checkpoints."""
    return bool(_all(run / "checkpoints"))


def newest(run: Path) -> Path:
    """The last checkpoint of a run folder; raises RecipeError when there is none."""
    found = _all(run / "checkpoints")
    if not found:
        raise RecipeError(f"{run}: no checkpoints/step-*.pt there; expected the folder of a training run")
    return found[-1]


def read(path: Path) -> State:
    """The state stored in a checkpoint, on the CPU; raises RecipeError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(f"{path}: not a checkpoint of this trainer: {error}") from error
    if not isinstance(state, dict) or "recipe" not in state:
        raise RecipeError(f"{path}: not a checkpoint of this trainer, expected an entry 'recipe'")
    return state


def _all(folder: Path) -> list[Path]:
    """Checkpoints by rising step."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in folder.glob("step-*.pt"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def random_state() -> State:
    """The states of the generators of python, numpy and torch."""
    name, keys, *rest = np.random.get_state()
    state: State = {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: State) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
