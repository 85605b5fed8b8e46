"""Parts of a long sampling on disk, written as they are made, so that the same sampling goes on after any end.

A name has a folder, in which every sampling has one of its own, called after its inputs: samplings of the same name
never touch each other's parts, and one goes on when its inputs are back.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
VERSION = 1
PARTIAL = ".partial"


class Segments:
    """Finished parts in a folder, and a manifest: hashes of everything they were made from, and of their files.

    The manifest names a file only after it is complete, and both appear at once under their names: whenever the process
    ends, what the manifest names is whole.
    """

    def __init__(self, named: Path, inputs: Mapping[str, str]) -> None:
        """Open the sampling of these inputs.

        Args:
            named: folder of a name; made where there is none.
            inputs: hash by name of everything that the parts depend on.
        """
        self.inputs = dict(inputs)
        text = json.dumps(sorted(self.inputs.items()))
        self.folder = named / hashlib.sha256(text.encode()).hexdigest()[:16]
        found = self._manifest()
        self.files: list[dict[str, str]] = found["files"] if found else []
        if found is None:
            self._say_others(named)

    def finished(self) -> list[dict[str, Tensor]]:
        """The parts that are there, in their order; those from the first damaged one on are to be made again."""
        parts: list[dict[str, Tensor]] = []
        for number, file in enumerate(self.files):
            tensors = self._read(file)
            if tensors is None:
                log.warning(
                    "%s is missing or not what was written: segments from number %d of %d are made again.",
                    self.folder / file["name"],
                    number + 1,
                    len(self.files),
                )
                self._remove(self.files[number:])
                self.files = self.files[:number]
                break
            parts.append(tensors)
        if parts:
            log.info("%s: going on after %d finished segments.", self.folder, len(parts))
        return parts

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next part.

        Raises:
            OSError: it could not be written, as on a full disk; parts before it are kept.
        """
        name = f"segment_{len(self.files) + 1:05}.safetensors"
        content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()})
        file = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"version": VERSION, "inputs": self.inputs, "files": [*self.files, file]}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / name, content)
            _write(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        except OSError as error:
            raise OSError(
                f"Segment {len(self.files) + 1} could not be written to {self.folder}: {error.strerror or error}. The "
                f"{len(self.files)} segments before it are kept: make room and queue the same graph again."
            ) from error
        self.files.append(file)

    def _manifest(self) -> dict | None:
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        found = _read_manifest(path)
        if found is None or found["inputs"] != self.inputs:
            log.warning("%s is not what was written: starting anew.", path)
            return None
        return found

    def _say_others(self, named: Path) -> None:
        """Why a sampling that was expected to go on does not: what differs from those that are kept."""
        for path in sorted(named.glob(f"*/{MANIFEST}")):
            found = _read_manifest(path)
            if found and path.parent != self.folder:
                names = {*self.inputs, *found["inputs"]}
                changed = sorted(name for name in names if self.inputs.get(name) != found["inputs"].get(name))
                log.info("%s keeps %d segments of other inputs (%s).", path.parent, len(found["files"]), changed)

    def _read(self, file: dict[str, str]) -> dict[str, Tensor] | None:
        """None where it is missing or another one."""
        try:
            content = (self.folder / file["name"]).read_bytes()
        except OSError:
            return None
        return safetensors.torch.load(content) if hashlib.sha256(content).hexdigest() == file["sha256"] else None

    def _remove(self, files: list[dict[str, str]]) -> None:
        for file in files:
            (self.folder / file["name"]).unlink(missing_ok=True)


def clear(named: Path) -> tuple[int, int]:
    """Remove all samplings of a name; the number of segments that were removed, and their bytes. Other files stay."""
    count = size = 0
    for folder in [path for path in named.glob("*") if path.is_dir()]:
        for path in [*folder.iterdir()]:
            if _is_own(path.name.removesuffix(PARTIAL)):
                count, size = count + 1, size + path.stat().st_size
                path.unlink()
            elif path.name.removesuffix(PARTIAL) == MANIFEST:
                path.unlink()
        _remove_if_empty(folder)
    _remove_if_empty(named)
    return count, size


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read_manifest(path: Path) -> dict | None:
    """None where it is not one that was written by this module."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        named = all(_is_own(file["name"]) and file["sha256"] for file in found["files"])
        return found if found["version"] == VERSION and isinstance(found["inputs"], dict) and named else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_own(name: str) -> bool:
    """A manifest that was edited must not make other files disappear."""
    return Path(name).name == name and name.startswith("segment_") and name.endswith(".safetensors")


def _write(path: Path, content: bytes) -> None:
    """All or nothing."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
