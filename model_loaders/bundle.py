"""This package's own files: networks, text encoder and autoencoder in one safetensors file that describes itself.

Tensors are named `<role>.<name>`; the metadata entry "weft" says which network each role is, with its configuration,
the latent space and the noise schedule. The trainer writes these files; the embedded models are such files. ComfyUI's
save nodes write no metadata of ours, so there every network's description travels as a tensor beside its weights.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from ..kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig
from ..kernels.networks.lvdm import (
    LatentVideoUNet,
    LatentVideoUNetConfig,
    TextToVideoUNet,
    TextToVideoUNetConfig,
)
from ..kernels.networks.show1 import PixelUNet, PixelUNetConfig
from ..kernels.networks.temporal_vae import TemporalVAE, TemporalVAEConfig
from ..kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from ..kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from ..kernels.sampling.schedules import NoiseSchedule
from .checkpoint import MODEL, TEXT_ENCODER, VAE, Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .files import save_tensors
from .image_unet import ImageUNetConfig
from .keymap import strip_prefix
from .lvdm import SCALINGS
from .temporal_vae import TEMPORAL_VAE

# Networks that a bundle may hold, with their configurations.
NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "TextToVideoUNet": (TextToVideoUNet, TextToVideoUNetConfig),
    "LatentVideoUNet": (LatentVideoUNet, LatentVideoUNetConfig),
    "HiGenUNet": (HiGenUNet, HiGenUNetConfig),
    "SpaceTimeUNet": (SpaceTimeUNet, SpaceTimeUNetConfig),
    "PixelUNet": (PixelUNet, PixelUNetConfig),
    "VersVideoUNet": (VersVideoUNet, VersVideoUNetConfig),
    "VideoAutoencoder": (VideoAutoencoder, VideoAutoencoderConfig),
    "CaptionEncoder": (CaptionEncoder, CaptionEncoderConfig),
    "TemporalVAE": (TemporalVAE, TemporalVAEConfig),
    "VideoFeatures": (VideoFeatures, VideoFeaturesConfig),
}

FEATURES = "features"
"""Role of a network that videos are measured by; no node asks for it."""

DESCRIPTION = "weft.description"
# Where save nodes put the descriptions of model, autoencoder and text encoder.
_DESCRIPTIONS = (DESCRIPTION, f"first_stage_model.{DESCRIPTION}", f"cond_stage_model.{DESCRIPTION}")
# Networks of ComfyUI that a saved file may hold beside ours, without a description.
_STOCK = {VAE: "stable diffusion", TEXT_ENCODER: "clip"}
_T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
# Where a role's tensors are: in our own files, and in what ComfyUI's save nodes write.
_PREFIXES = {
    MODEL: ("diffusion_model.", "model.diffusion_model."),
    VAE: ("vae.", "first_stage_model."),
    TEXT_ENCODER: (
        "text_encoder.",
        "cond_stage_model.caption.transformer.",
        "cond_stage_model.clip_l.transformer.",
        "cond_stage_model.clip_h.transformer.",
        "cond_stage_model.t5xxl.transformer.",
    ),
    FEATURES: ("features.",),
    TEMPORAL_VAE: (f"{TEMPORAL_VAE}.",),
}


def save_bundle(
    path: Path | str,
    components: Mapping[str, nn.Module | Component],
    *,
    system: str,
    latent: LatentSpec,
    schedule: NoiseSchedule,
    metadata: Mapping[str, object],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write networks by role ("diffusion_model", "vae", "text_encoder") into one file, atomically.

    Networks of ComfyUI are given as components.

    Raises:
        ValueError: a network that bundles do not know.
    """
    roles = {role: _component(part) for role, part in components.items()}
    description = describe(Checkpoint(Path(path).name, system, roles, latent, schedule))
    tensors = {
        f"{role}.{name}": tensor.to(dtype)
        for role, component in roles.items()
        for name, tensor in component.tensors.items()
    }
    save_tensors(path, tensors, {"weft": description, **metadata})


def _component(part: nn.Module | Component) -> Component:
    if isinstance(part, Component):
        return part
    if type(part).__name__ not in NETWORKS:
        raise ValueError(f"A bundle cannot hold {type(part).__name__}; it knows {', '.join(NETWORKS)}.")
    return Component(type(part), part.config, part.state_dict())


def describe(checkpoint: Checkpoint, roles: Collection[str] | None = None) -> dict[str, object]:
    """Everything but the weights, as plain data; with `roles`, of these networks only."""
    return {
        "system": checkpoint.family,
        "components": {
            role: {
                "network": component.network.__name__ if component.network else None,
                "config": _plain(component.config),
            }
            for role, component in checkpoint.components.items()
            if roles is None or role in roles
        },
        "latent": dataclasses.asdict(checkpoint.latent),
        "schedule": dataclasses.asdict(checkpoint.schedule),
    }


def _plain(config: object) -> object:
    """A configuration as plain data; the name of a network of ComfyUI stays."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return config


def description_tensor(description: Mapping[str, object]) -> Tensor:
    """A description as a tensor of bytes, for writers that keep tensors only."""
    return torch.frombuffer(bytearray(json.dumps(description).encode()), dtype=torch.uint8)


def from_mapping(kind: type, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an instance of `kind`
    """A configuration dataclass from decoded JSON; lists become tuples."""
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return "weft" in metadata or any(name in tensors for name in _DESCRIPTIONS)


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if options.ema:
        raise CheckpointError(f"{name} has no averaged (EMA) weights beside its own: choose the training weights.")
    try:
        description = _description(tensors, metadata)
        components = _components(description["components"], tensors)
        latent = from_mapping(LatentSpec, description["latent"])
        schedule = from_mapping(NoiseSchedule, description["schedule"])
        system = description["system"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: its description does not fit this version of the pack ({error!r}): update the pack, or export "
            "the file again."
        ) from error
    if options.scaling != "auto":
        scale, shift = SCALINGS[options.scaling]
        latent = dataclasses.replace(latent, scale=scale, shift=shift)
    rest = {key: value for key, value in metadata.items() if key != "weft"}
    return Checkpoint(name, system, components, latent, schedule, rest)


def _description(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description of the whole file: its own, or put together from those of its networks."""
    if "weft" in metadata:
        return json.loads(metadata["weft"])
    parts = [json.loads(bytes(tensors[name].tolist())) for name in _DESCRIPTIONS if name in tensors]
    components = {role: entry for part in parts for role, entry in part["components"].items()}
    return {**parts[0], "components": components}


def _components(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Component]:
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _DESCRIPTIONS}
    components = {}
    unknown = entries.keys() - _PREFIXES.keys()
    if unknown:
        raise KeyError(unknown.pop())
    for role, prefixes in _PREFIXES.items():
        # A network that was saved alone has no prefix.
        alone = ("",) if list(entries) == [role] else ()
        found = (strip_prefix(tensors, prefix) for prefix in (*prefixes, *alone))
        weights = next((weights for weights in found if weights), {})
        stock = "t5 xxl" if _T5_MARK in weights else _STOCK.get(role)
        entry = entries.get(role, {"network": None, "config": stock})
        if weights and entry["network"] is None:
            config = entry["config"]
            # ComfyUI's networks are known by name, but for the one that may have any size.
            sizes = from_mapping(ImageUNetConfig, config) if isinstance(config, Mapping) else config
            components[role] = Component(None, sizes, weights)
        elif weights:
            network, config = NETWORKS[entry["network"]]
            components[role] = Component(network, from_mapping(config, entry["config"]), weights)
    return components


FAMILY = Family("bundle", _recognise, _read)
