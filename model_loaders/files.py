"""Reading model files from disk without running anything that is in them."""

import json
import pickle
import zipfile
from pathlib import Path

import safetensors
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .errors import CheckpointError

# Objects that training frameworks leave beside the weights. They are replaced by empty stand-ins, never imported.
_HARMLESS_MODULES = ("pytorch_lightning", "lightning", "omegaconf", "numpy", "collections", "argparse", "typing")
_NESTS = ("state_dict", "model", "module", "model_state_dict")
# Weights hardly compress; an archive that promises far more than it holds is not a model.
_MAX_EXPANSION = 20


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata, of a safetensors file or a pickled checkpoint (read with weights_only).

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path.name}: there is no such file.")
    with open(path, "rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _tensors_of(_read_pickle(path), path), {}
    kind = _known_kind(head)
    raise CheckpointError(
        f"{path.name} is {kind}, expected a .safetensors file or a PyTorch checkpoint: choose the model's weights."
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or cut off ({error}): download or copy it again and compare its size."
        ) from error


def _read_pickle(path: Path) -> object:
    if zipfile.is_zipfile(path):
        _refuse_zip_bomb(path)
    try:
        names = get_unsafe_globals_in_checkpoint(path)
        foreign = [name for name in names if name.split(".")[0] not in _HARMLESS_MODULES]
        if foreign:
            raise CheckpointError(
                f"{path.name} holds code ({', '.join(sorted(foreign)[:3])}) besides weights and was not opened: "
                "use a .safetensors version of it."
            )
        with safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError) as error:
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{path.name} is not a readable PyTorch checkpoint ({reason}): download or copy it again."
        ) from error


def _refuse_zip_bomb(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        promised = sum(entry.file_size for entry in archive.infolist())
    if promised > _MAX_EXPANSION * size:
        raise CheckpointError(
            f"{path.name} has {size:,} bytes and would unpack to {promised:,}: this is not a model, it was not opened."
        )


def _stand_in(name: str) -> type:
    """A class without behaviour that takes the place of a training framework's."""
    return type(name.rsplit(".", 1)[-1], (dict,), {"__setstate__": lambda self, state: None})


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    tensors = {}
    if isinstance(content, dict):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors by name: expected a checkpoint or a state dict.")
    return tensors


def _known_kind(head: bytes) -> str:
    kinds = {b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image", b"RIFF": "a media file"}
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "a video"
    if head.lstrip()[:1] in (b"<", b"{", b"v"):
        return "a text or web page (a download that failed?)"
    return "empty" if not head else "of an unknown kind"


def encode_metadata(metadata: dict[str, object]) -> dict[str, str]:
    """Metadata for safetensors, which stores strings only: everything else becomes JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
