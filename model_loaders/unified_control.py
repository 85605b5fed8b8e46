"""Files of VersVideo's unified ControlNet and style adapter, under names of our own (nothing was released)."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..kernels.networks.style_adapter import StyleAdapter, StyleAdapterConfig
from ..kernels.networks.unified_control import UnifiedControlConfig, UnifiedControlNet
from ..kernels.networks.versvideo import VersVideoUNetConfig
from .bundle import from_mapping
from .checkpoint import Checkpoint, Component, Family, ReadOptions
from .errors import CheckpointError
from .files import save_tensors
from .keymap import strip_prefix
from .versvideo import UNET_KEYS, file_tensors

CONTROL, STYLE = "control_net", "style_adapter"
"""Roles of the networks in a checkpoint; a file may hold both, or one."""
FORMAT, VERSION = "versvideo_control", 1
_COPY, _ADAPTERS, _ZERO, _MIDDLE = "control.", "adapters.", "zero_convs.", "middle_block_out."
_STYLE = "style_adapter."


def save_unified_control(
    path: Path | str, network: UnifiedControlNet, style: StyleAdapter | None = None, **metadata: object
) -> None:
    """Write networks as a file of the layout that `FAMILY` reads; `metadata` is more to be said of them."""
    said = {
        "format": FORMAT,
        "format_version": VERSION,
        "unet": dataclasses.asdict(network.config.unet),
        "conditions": network.config.conditions,
        **metadata,
    }
    own = {name: x.detach().cpu().contiguous() for name, x in network.state_dict().items()}
    apart = (_ADAPTERS, _ZERO, "middle_out.")
    copy = file_tensors({name: x for name, x in own.items() if not name.startswith(apart)})
    tensors = {_COPY + name: x.contiguous() for name, x in copy.items()}
    for name in own:
        if name.startswith(apart):
            new = name if name.startswith(_ADAPTERS) else _COPY + name.replace("middle_out.", _MIDDLE)
            tensors[new] = own[name]
    if style is not None:
        tensors |= {_STYLE + name: x.detach().cpu().contiguous() for name, x in style.project.state_dict().items()}
        said["text_width"] = style.config.width
    save_tensors(path, tensors, said)


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    control = f"{_COPY}{_ZERO}0.weight" in tensors and any(name.startswith(_ADAPTERS) for name in tensors)
    return control or f"{_STYLE}weight" in tensors


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if (version := metadata.get("format_version", str(VERSION))) != str(VERSION):
        raise CheckpointError(f"{name} has format_version {version}, expected {VERSION}: update the pack.")
    components = {}
    if style := strip_prefix(tensors, _STYLE):
        components[STYLE] = _style(style, metadata)
    others = {key: x for key, x in tensors.items() if not key.startswith(_STYLE)}
    if others:
        components[CONTROL] = _control(name, others, metadata)
    return Checkpoint(name, FORMAT, components, metadata=dict(metadata))


def _style(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Component:
    width = int(metadata.get("text_width", StyleAdapterConfig.width))
    outputs, inputs = tensors["weight"].shape
    config = StyleAdapterConfig(inputs, width, outputs // width)
    return Component(StyleAdapter, config, {f"project.{name}": x for name, x in tensors.items()})


def _control(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Component:
    if "unet" not in metadata:
        raise CheckpointError(f"{name} does not say in its metadata which denoiser it is for: export it again.")
    copy = strip_prefix(tensors, _COPY)
    outputs = {key: x for key, x in copy.items() if key.startswith((_ZERO, _MIDDLE))}
    renamed = UNET_KEYS({key: x for key, x in copy.items() if key not in outputs})
    renamed |= {key.replace(_MIDDLE, "middle_out."): x for key, x in outputs.items()}
    renamed |= {key: x for key, x in tensors.items() if not key.startswith(_COPY)}
    conditions = dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith(_ADAPTERS))
    unet = from_mapping(VersVideoUNetConfig, json.loads(metadata["unet"]))
    config = UnifiedControlConfig(unet, tuple(json.loads(metadata.get("conditions", json.dumps([*conditions])))))
    return Component(UnifiedControlNet, config, renamed)


FAMILY = Family(FORMAT, _recognise, _read)
