"""Reading model files from disk without running anything that is in them."""

import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .errors import CheckpointError

# Objects that training frameworks leave beside the weights. They are replaced by empty stand-ins, never imported.
_HARMLESS = re.compile(
    r"(pytorch_lightning|lightning|omegaconf|numpy|collections|argparse|pathlib|typing)\."
    r"|builtins\.(bool|dict|float|int|list|object|set|str|tuple)$"
)
_KINDS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a media file",
}
FOLDER_PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Folders of a diffusers pipeline that are read, and how the weights in them are called."""
SCHEDULER, UNET = "scheduler", "unet"
"""Keys of a folder's configurations of scheduler and denoiser in its metadata."""
_CONFIGURATIONS = {SCHEDULER: "scheduler_config.json", UNET: "config.json"}
_NESTS = ("state_dict", "model", "module", "model_state_dict")


def read_tensors(path: Path, parts: Collection[str] = tuple(FOLDER_PARTS)) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata, of a safetensors file or a pickled checkpoint (read with weights_only).

    Of a folder in diffusers' layout the tensors of its parts, each below the part's name; with `parts`, of these only.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, parts)
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


def _read_folder(folder: Path, parts: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for file in _weights_in(folder / part, FOLDER_PARTS[part]):
            tensors |= {f"{part}.{name}": tensor for name, tensor in read_tensors(file)[0].items()}
    if not any(name.startswith("unet.") for name in tensors):
        raise CheckpointError(
            f"{folder.name} has no unet/{FOLDER_PARTS['unet']}.safetensors (or .bin): expected a pipeline's folder in "
            "diffusers' layout, as downloaded with all its subfolders."
        )
    paths = {kind: folder / kind / name for kind, name in _CONFIGURATIONS.items()}
    said = {kind: path.read_text(encoding="utf-8", errors="replace") for kind, path in paths.items() if path.is_file()}
    return tensors, said


def _weights_in(folder: Path, stem: str) -> list[Path]:
    """The file with all weights, or its shards; safetensors before pickles, whole before half precision.

    Raises:
        CheckpointError: a shard is missing.
    """
    pickled = "pytorch_model" if stem == "model" else stem
    kinds = [(stem, "safetensors"), (pickled, "bin"), (f"{stem}.fp16", "safetensors"), (f"{pickled}.fp16", "bin")]
    for name, suffix in kinds:
        if (folder / f"{name}.{suffix}").is_file():
            return [folder / f"{name}.{suffix}"]
    # Half precision is named behind the number of a shard, too.
    kinds += [(stem, "fp16.safetensors"), (pickled, "fp16.bin")]
    for name, suffix in kinds:
        numbers = "[0-9]" * 5
        shards = sorted(folder.glob(f"{name}-{numbers}-of-{numbers}.{suffix}"))
        if shards:
            _check_shards(shards)
            return shards
    return []


def _check_shards(shards: list[Path]) -> None:
    total = int(shards[0].name.partition("-of-")[2][:5])
    if len(shards) != total:
        found = ", ".join(path.name for path in shards)
        raise CheckpointError(
            f"{shards[0].parent.name} has {len(shards)} of {total} shards of its weights ({found}): download the "
            "others."
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
    try:
        # Checkpoints are archives since PyTorch 1.6; the format before that cannot be searched for foreign objects.
        archive = zipfile.is_zipfile(path)
        if archive:
            _refuse_compressed(path)
        names = get_unsafe_globals_in_checkpoint(path) if archive else []
        foreign = [name for name in names if not _HARMLESS.match(name)]
        if foreign:
            raise CheckpointError(
                f"{path.name} holds code ({', '.join(sorted(foreign)[:3])}) besides weights and was not opened: "
                "use a .safetensors version of it."
            )
        with safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile pickle raises whatever its bytes lead to
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0][:200]
        raise CheckpointError(
            f"{path.name} is not a PyTorch checkpoint that holds weights alone ({reason}): download or copy it again, "
            "or use a .safetensors version of it."
        ) from error


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores weights as they are: an archive that unpacks to more than its own size is none of its files."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        promised = sum(entry.file_size for entry in archive.infolist())
    if promised > size:
        raise CheckpointError(
            f"{path.name} has {size:,} bytes and would unpack to {promised:,}, expected a PyTorch checkpoint, which is "
            "not compressed: it was not opened. Unpack it, or choose another file."
        )


class _Ignored:
    """Swallows what a pickle does to an object."""

    def __init__(self, *arguments: object) -> None:
        return None

    def __setstate__(self, state: object) -> None:
        return None


def _stand_in(name: str) -> type:
    """A class without behaviour in the place of a training framework's; torch fills items into plain mappings only."""
    if name.startswith("numpy."):
        return type(name, (_Ignored,), {})
    return type(name, (), {"__new__": lambda cls, *arguments: OrderedDict()})


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    tensors = {}
    if isinstance(content, dict):
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors by name: expected a checkpoint or a state dict.")
    return tensors


def _known_kind(head: bytes) -> str:
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "a video"
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text or web page (a download that failed?)"
    return "of an unknown kind" if head else "empty"


def encode_metadata(metadata: Mapping[str, object]) -> dict[str, str]:
    """Metadata for safetensors, which stores strings only: everything else becomes JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write a safetensors file whole or not at all, readable for everybody; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, encode_metadata(metadata))
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
