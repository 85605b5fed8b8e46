"""Checkpoints of a training run: written whole or not at all, with everything that makes a resumed run exact."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import distributed
from .distributed import Keys
from .settings import RecipeError

State = dict[str, Any]
PLAIN = "state.pt"
"""In the folder of a checkpoint: everything but what is shared out over processes."""
SHARED_OUT = "shared_out"
"""Entry of that file: where in the state the tensors of the other files lie."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; those before it are as they were."""


def save(folder: Path, step: int, state: State, keep: int) -> Path:
    """Write step-N.pt through a temporary file and remove all but the newest `keep`; returns its path.

    What is shared out over processes makes it a folder step-N, to which each of them writes its part
    (torch.distributed.checkpoint); else the first process writes the file. Raises CheckpointNotWritten.
    """
    shared_out = {keys: leaf for keys, leaf in distributed.leaves(state) if distributed.is_shared_out(leaf)}
    path = folder / f"step-{step:07d}{'' if shared_out else '.pt'}"
    temporary = folder / f"step-{step:07d}.tmp"
    try:
        if distributed.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("step-*.tmp"):  # of a process that was killed
                _remove(left)
        if shared_out:
            _write_parts(temporary, state, shared_out)
        elif distributed.is_first():
            _write(temporary, state)
        if distributed.is_first():
            _remove(path)
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if distributed.is_first():
            _remove(temporary)
        raise CheckpointNotWritten(
            f"{path}: could not be written ({_first_of(error)}); the checkpoints before it are as they were. Make room "
            "where they lie, and resume"
        ) from error
    if distributed.is_first():
        for old in _all(folder)[:-keep]:
            _remove(old)
    distributed.wait()
    return path


def exist(run: Path) -> bool:
    """Whether a run folder has checkpoints."""
    return bool(_all(run / "checkpoints"))


def newest(run: Path) -> Path:
    """The last checkpoint of a run folder; raises RecipeError when there is none."""
    found = _all(run / "checkpoints")
    if not found:
        raise RecipeError(f"{run}: no checkpoints/step-* there; expected the folder of a training run")
    return found[-1]


def read(path: Path, like: Mapping[Keys, Tensor] | None = None) -> State:
    """The state stored in a checkpoint, on the CPU; raises RecipeError for anything else.

    Tensors that lie where one of `like` does are shared out as it is: of the file's, this process keeps its part.
    """
    state = read_plain(path)
    like = like or {}
    if SHARED_OUT in state:
        _read_parts(path, state, like)
        return state
    for keys, leaf in list(distributed.leaves(state)):
        if keys in like:
            distributed.put(state, keys, distributed.placed_like(leaf, like[keys]))
    return state


def read_plain(path: Path) -> State:
    """The state of a checkpoint without what lies in the files of several processes; raises RecipeError."""
    try:
        state = torch.load(path / PLAIN if path.is_dir() else path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(f"{path}: not a checkpoint of this trainer: {error}") from error
    if not isinstance(state, dict) or "recipe" not in state:
        raise RecipeError(f"{path}: not a checkpoint of this trainer, expected an entry 'recipe'")
    return state


def _first_of(error: BaseException) -> BaseException:
    """What the system said: torch closes a file that is not whole, and then complains of that."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    return found or error


def _write(path: Path, state: State) -> None:
    """A file that is on disk when this returns."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_parts(folder: Path, state: State, shared_out: Mapping[Keys, Any]) -> None:
    """The folder of a checkpoint: the plain file by the first process, and by every one its part of the others."""
    from torch.distributed.checkpoint import CheckpointException, save

    if distributed.is_first():
        folder.mkdir()
        _write(folder / PLAIN, _without(state, shared_out) | {SHARED_OUT: list(shared_out)})
    distributed.wait()
    try:
        save({_name(keys): tensor for keys, tensor in shared_out.items()}, checkpoint_id=folder)
    except CheckpointException as error:
        raise OSError(str(error)) from error


def _read_parts(path: Path, state: State, like: Mapping[Keys, Tensor]) -> None:
    """Put what several processes have written into the state, whatever their number was."""
    from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load

    reader = FileSystemReader(path)
    try:
        written = reader.read_metadata().state_dict_metadata
        tensors = {
            keys: torch.empty_like(like[keys]) if keys in like else _empty(written[_name(keys)])
            for keys in state[SHARED_OUT]
        }
        load({_name(keys): tensor for keys, tensor in tensors.items()}, storage_reader=reader, no_dist=not like)
    except (CheckpointException, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(f"{path}: damaged checkpoint: {error}") from error
    del state[SHARED_OUT]
    for keys, tensor in tensors.items():
        distributed.put(state, keys, tensor)


def _empty(written: Any) -> Tensor:
    """Room for a whole tensor that several processes have written."""
    return torch.empty(written.size, dtype=written.properties.dtype)


def _name(keys: Keys) -> str:
    return "/".join(map(str, keys))


def _without(tree: Any, left_out: Mapping[Keys, Any], at: Keys = ()) -> Any:
    """Nested tables and lists, the lists whole, without what lies in tables at these places."""
    if not isinstance(tree, dict):
        return tree
    return {key: _without(item, left_out, (*at, key)) for key, item in tree.items() if (*at, key) not in left_out}


def _remove(path: Path) -> None:
    """Remove a file or folder where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _all(folder: Path) -> list[Path]:
    """Checkpoints by rising step."""
    found = ((re.fullmatch(r"step-(\d+)(\.pt)?", path.name), path) for path in folder.glob("step-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def random_state(device: torch.device) -> State:
    """The states of the generators of python, numpy and torch, of that on a device too."""
    name, keys, *rest = np.random.get_state()
    state: State = {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = [torch.cuda.get_rng_state(device)]
    return state


def set_random_state(state: State, device: torch.device) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state.get("cuda") and device.type == "cuda":
        # There are as many as the machine had GPUs in older checkpoints, which one process has written.
        torch.cuda.set_rng_state(state["cuda"][min(device.index or 0, len(state["cuda"]) - 1)], device)
