"""Files of VersVideo's TCM-VAE: what is added to an image decoder, under names of our own (nothing was released)."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..kernels.networks.temporal_vae import TemporalVAE, TemporalVAEConfig
from .checkpoint import Checkpoint, Component, Family, ReadOptions
from .errors import CheckpointError
from .files import save_tensors
from .keymap import KeyMap, Rule
from .unet_layout import count

TEMPORAL_VAE = "temporal_vae"
"""Role of the network in a checkpoint."""
FORMAT, VERSION = "tcm_vae", 1
_MODULES, _REFINEMENT = "decoder.tcm.", "refine."
# A file may hold the image model's autoencoder beside them; the node is given that as a VAE.
_IMAGE_VAE = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\.")

_KEYS = KeyMap(
    rules=(
        (r"^decoder\.tcm\.(\d+)\.", lambda match: f"levels.{int(match[1]) - 1}."),
        (r"^(levels\.\d+\.norm\d)\.", r"\1.norm."),
        (r"^(levels\.\d+)\.mec(\d)\.", r"\1.conv\2."),
        (r"^(levels\.\d+\.conv\d)\.(weight|bias)$", r"\1.spatial.\2"),
        (r"^(levels\.\d+\.conv\d)\.gate$", r"\1.gate.weight"),
        (r"^(levels\.\d+\.conv\d)\.ste\.", r"\1.place."),
        (r"^(levels\.\d+\.conv\d)\.ce\.", r"\1.channel."),
        (r"^(levels\.\d+\.conv\d)\.me\.", r"\1.motion."),
    ),
    axes=(
        (r"^levels\.\d+\.conv\d\.(shift|temporal|gate|channel\.temporal)\.weight$", 4),
        (r"^levels\.\d+\.conv\d\.(channel|motion)\.(squeeze|expand)\.weight$", 2),
    ),
)
# Ours to those of files.
_NAMES: tuple[Rule, ...] = (
    (r"^levels\.(\d+)\.", lambda match: f"decoder.tcm.{int(match[1]) + 1}."),
    (r"^(decoder\.tcm\.\d+\.norm\d)\.norm\.", r"\1."),
    (r"^(decoder\.tcm\.\d+)\.conv(\d)\.", r"\1.mec\2."),
    (r"(\.mec\d)\.spatial\.", r"\1."),
    (r"(\.mec\d)\.gate\.weight$", r"\1.gate"),
    (r"(\.mec\d)\.place\.", r"\1.ste."),
    (r"(\.mec\d)\.channel\.", r"\1.ce."),
    (r"(\.mec\d)\.motion\.", r"\1.me."),
)
_FILE_AXES = (
    (re.compile(r"\.mec\d\.temporal\.weight$"), 5),
    (re.compile(r"\.(squeeze|expand)\.weight$"), 4),
    (re.compile(r"\.(shift|ce\.temporal)\.weight$"), 3),
    (re.compile(r"\.gate$"), 1),
)


def save_temporal_vae(path: Path | str, network: TemporalVAE, **metadata: object) -> None:
    """Write a network as a file of the layout that `FAMILY` reads; `metadata` is more to be said of it."""
    said = {
        "format": FORMAT,
        "format_version": VERSION,
        "latent_channels": network.config.latent_channels,
        **metadata,
    }
    rename = KeyMap(_NAMES).rename
    tensors = {}
    for name, tensor in network.state_dict().items():
        new = rename(name)
        axes = next((axes for pattern, axes in _FILE_AXES if pattern.search(new)), tensor.ndim)
        shaped = tensor.reshape(*tensor.shape[:axes], *[1] * (axes - tensor.ndim))
        tensors[new] = shaped.detach().cpu().contiguous()
    save_tensors(path, tensors, said)


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return any(name.startswith(_MODULES) for name in tensors)


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if options.ema:
        raise CheckpointError(f"{name} has no averaged (EMA) weights beside its own: choose the training weights.")
    if (version := metadata.get("format_version", str(VERSION))) != str(VERSION):
        raise CheckpointError(f"{name} has format_version {version}, expected {VERSION}: update the pack.")
    added = {key: tensor for key, tensor in tensors.items() if key.startswith(_MODULES) or not _IMAGE_VAE.match(key)}
    renamed = _KEYS(added)
    levels = count(renamed, r"^levels\.(\d+)\.")
    mult, blocks = _refinement(renamed)
    config = TemporalVAEConfig(
        widths=tuple(len(renamed[f"levels.{level}.norm1.norm.weight"]) for level in range(levels)),
        latent_channels=int(metadata.get("latent_channels", TemporalVAEConfig.latent_channels)),
        refinement_channels=len(renamed[f"{_REFINEMENT}conv_in.weight"]),
        refinement_mult=mult,
        refinement_blocks=blocks,
    )
    return Checkpoint(name, FORMAT, {TEMPORAL_VAE: Component(TemporalVAE, config, renamed)}, metadata=dict(metadata))


def _refinement(tensors: Mapping[str, Tensor]) -> tuple[tuple[float, ...], int]:
    """Width of each level of the refinement network in base widths, and its residual blocks going down."""
    stages = f"{_REFINEMENT}skeleton.down."
    base = len(tensors[f"{_REFINEMENT}conv_in.weight"])
    levels: list[list[int]] = [[]]
    for stage in range(count(tensors, rf"^{re.escape(stages)}(\d+)\.")):
        residual = tensors.get(f"{stages}{stage}.residual.conv1.weight")
        if residual is None:
            levels.append([])
        else:
            levels[-1].append(len(residual))
    return tuple(widths[0] / base for widths in levels), len(levels[0])


FAMILY = Family(FORMAT, _recognise, _read)
