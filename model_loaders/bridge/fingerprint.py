"""Hashes of a node's inputs that stay the same from one process to the next, and change when the result would."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

_SKIPPED = {"uuid", "device"}
"""Of conditioning: drawn anew in every run, or of the machine."""


def fingerprint(value: object) -> str:
    """Hash of numbers, texts, tensors and containers of them; of other objects and of functions the name counts."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: object) -> None:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=str):
            if key not in _SKIPPED:
                digest.update(f"{key!s}: ".encode())
                _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"row {len(value)} ".encode())
        for item in value:
            _feed(digest, item)
    elif value is None or isinstance(value, str | int | float | bool):
        digest.update(f"{type(value).__name__} {value!r} ".encode())
    elif isinstance(value, partial):
        _feed(digest, [value.func, value.args, value.keywords])
    else:
        named = value if hasattr(value, "__qualname__") else type(value)
        module = str(getattr(named, "__module__", "")).rpartition(".")[2]  # ours are named after their folder
        digest.update(f"object {module}.{named.__qualname__} ".encode())  # type: ignore[attr-defined]


def graph_fingerprint(prompt: Mapping[str, dict] | None, node: str | None, but: str | None = None) -> str:
    """Hash of all that a graph in API format has before a node: kinds, widgets and links, whatever the nodes' numbers.

    What is no part of the queued graph, as in a loop, counts as nothing; so does the input of the node called `but`.
    """
    known: dict[str, object] = {}

    def described(key: str) -> object:
        if key not in known:
            known[key] = None  # of a node that is its own input, which ComfyUI refuses
            entry = (prompt or {}).get(key, {})
            inputs = entry.get("inputs", {})
            parts = {name: linked(value) for name, value in sorted(inputs.items())}
            known[key] = hashlib.sha256(json.dumps([entry.get("class_type"), parts]).encode()).hexdigest()
        return known[key]

    def linked(value: object) -> object:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return [described(value[0]), value[1]]
        return value

    entry = (prompt or {}).get(str(node), {})
    inputs = {name: value for name, value in entry.get("inputs", {}).items() if name != but}
    prompt = {**(prompt or {}), str(node): {**entry, "inputs": inputs}}
    return str(described(str(node)))


def model_fingerprint(patcher: object) -> str:
    """Hash of a MODEL: what it is, the files that it was loaded from, and the weights of patches such as LoRA."""
    init = getattr(patcher, "cached_patcher_init", None)
    files = [_stamp(text) for text in _texts(init[1])] if init else []
    patches = {
        str(key): [[entry[0], _weights(entry[1]), *entry[2:4]] for entry in entries]
        for key, entries in patcher.patches.items()  # type: ignore[attr-defined]
    }
    inner = patcher.model  # type: ignore[attr-defined]
    sizes = sum(weight.numel() for weight in inner.parameters())
    levels = patcher.get_model_object("model_sampling")  # type: ignore[attr-defined]
    schedule = [float(levels.percent_to_sigma(part)) for part in (0.1, 0.5, 0.9)]
    options = patcher.model_options  # type: ignore[attr-defined]
    return fingerprint([type(inner), sizes, schedule, files, patches, options])


def _weights(patch: object) -> object:
    return getattr(patch, "weights", patch)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list | tuple) else []


def _stamp(path: str) -> str:
    if not os.path.isfile(path):
        return path
    state = os.stat(path)
    return f"{os.path.basename(path)} {state.st_size} {state.st_mtime_ns}"
