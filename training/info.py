"""What a run folder, a checkpoint or an exported file is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model_loaders.checkpoint import read
from . import checkpoints
from .build import recipe_of
from .distributed import leaves
from .export import trained_revision, validation
from .metrics import read_rows
from .settings import InputError, to_table

SHOWN = ("steps", "revision", "training_revisions", "dataset", "dataset_seed", "held_out", "scores")
"""What exported files say of themselves, in the order in which it is shown."""


def describe_source(source: Path) -> list[str]:
    """Lines that say what it is; InputError, or CheckpointError for unusable model files."""
    if not source.exists():
        raise InputError(f"{source}: does not exist, expected a run folder, checkpoint or exported file")
    if source.suffix == ".safetensors":
        return _describe_file(source)
    if source.is_dir() and not (source / checkpoints.PLAIN).exists():
        return _describe_checkpoint(checkpoints.newest(source), f"run {source}")
    return _describe_checkpoint(source, f"checkpoint {source}")


def _describe_checkpoint(path: Path, title: str) -> list[str]:
    recipe, state = recipe_of(path), checkpoints.read(path)
    run = path.parent.parent
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["step"] <= state["step"]]
    last = next((row for row in reversed(rows) if "loss" in row), {})
    lines = [
        title,
        _line("task", f"{recipe.task} ({recipe.system})" if hasattr(recipe, "system") else recipe.task),
        _line(
            "step",
            f"{state['step']} of {recipe.run.steps}, {state['clips_seen']} clips, {state['seconds'] / 60:.0f} min",
        ),
        _line("checkpoint", path.name),
        _line("data", _plain(to_table(recipe.data))),
        _line("revision", trained_revision(run / "run.json")),
    ]
    if last:
        lines.append(_line("loss", f"{last['loss']:.5g} at step {last['step']}"))
    measured = validation(run / "metrics.jsonl", state["step"])
    if measured:
        lines.append(_line("held out", _plain({name: round(value, 4) for name, value in measured.items()})))
    return lines + [_line(role, _size(tensors)) for role, tensors in state["networks"].items()]


def _describe_file(path: Path) -> list[str]:
    checkpoint = read(path)
    lines = [f"file {path}, {path.stat().st_size / 1e6:.1f} MB", _line("family", checkpoint.family)]
    for name in SHOWN:
        if name in checkpoint.metadata:
            lines.append(_line(name, _plain(_decoded(checkpoint.metadata[name]))))
    return lines + [_line(role, _size(part.tensors)) for role, part in checkpoint.components.items()]


def _line(name: str, value: str) -> str:
    return f"  {name}".ljust(22) + value


def _decoded(text: object) -> Any:
    """A value of the file's metadata, tables and lists of which are JSON."""
    try:
        return json.loads(str(text))
    except json.JSONDecodeError:
        return text


def _plain(value: Any) -> str:
    """A table on one line."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{'.'.join(map(str, keys))} {leaf}" for keys, leaf in leaves(value))


def _size(tensors: Mapping[str, Tensor]) -> str:
    values = sum(tensor.numel() for tensor in tensors.values())
    return f"{values / 1e6:.2f} M values in {len(tensors)} tensors"
