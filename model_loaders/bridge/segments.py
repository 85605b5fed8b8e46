"""Parts of a long sampling on disk, written as they are made, so that the same sampling goes on after any end."""

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


class Segments:
    """Finished parts in a folder, and a manifest: hashes of everything they were made from, and of their files.

    The manifest names a file only after it is complete, and both appear at once under their names: whenever the process
    ends, what the manifest names is whole.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, str]) -> None:
        """Open a folder; parts that were made from other inputs are removed.

        Args:
            folder: made where there is none; belongs to one sampling at a time.
            inputs: hash by name of everything that the parts depend on.
        """
        self.folder, self.inputs = folder, dict(inputs)
        self.files: list[dict[str, str]] = []
        found = self._manifest()
        if found is None:
            return
        changed = sorted(name for name in {*inputs, *found["inputs"]} if inputs.get(name) != found["inputs"].get(name))
        if changed:
            log.info("%s holds %d segments of other inputs (%s): starting anew.", folder, len(found["files"]), changed)
            self._remove(found["files"])
        else:
            self.files = found["files"]

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
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            named = all(_is_own(file["name"]) and file["sha256"] for file in found["files"])
            if found["version"] == VERSION and isinstance(found["inputs"], dict) and named:
                return found
        except (ValueError, KeyError, TypeError):
            pass
        log.warning("%s is not what was written: starting anew.", path)
        return None

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


def _is_own(name: str) -> bool:
    """A manifest that was edited must not make other files disappear."""
    return Path(name).name == name and name.startswith("segment_") and name.endswith(".safetensors")


def _write(path: Path, content: bytes) -> None:
    """All or nothing."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
