"""From finished runs to one model file that ComfyUI loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from ..kernels.networks.harivo import MotionConfig, MotionNetwork
from ..kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig
from ..kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig, TextToVideoUNet, TextToVideoUNetConfig
from ..kernels.networks.show1 import PixelUNet, PixelUNetConfig
from ..kernels.networks.temporal_vae import TemporalVAE, TemporalVAEConfig
from ..kernels.networks.unified_control import UnifiedControlConfig, UnifiedControlNet
from ..kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from ..kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from ..kernels.sampling.schedules import NoiseSchedule
from ..model_loaders.bundle import FEATURES, save_bundle
from ..model_loaders.checkpoint import Component, LatentSpec
from ..model_loaders.files import encode_metadata
from ..model_loaders.harivo import MOTION, save_motion
from ..model_loaders.image_unet import ImageUNetConfig
from ..model_loaders.show1 import LATENT
from ..model_loaders.temporal_vae import TEMPORAL_VAE, save_temporal_vae
from ..model_loaders.unified_control import save_unified_control
from . import checkpoints
from .config import (
    AddedRecipe,
    DenoiserRecipe,
    ExpertRecipe,
    HarivoRecipe,
    HiGenRecipe,
    ImageRecipe,
    MaskRecipe,
    Recipe,
    Show1Recipe,
    TemporalVAERecipe,
    TextToVideoRecipe,
    VersVideoControlRecipe,
    VersVideoRecipe,
    read_recipe,
)
from .control_net import CONTROL, ControlNet, save_control_net
from .first_stage import COPY_NAME, read_autoencoder
from .image_unet import ImageUNet, component_of
from .metrics import read_rows
from .revision import git_revision
from .settings import InputError, read_section, to_table

NETWORKS: dict[str, tuple[Any, type]] = {
    "vae": (VideoAutoencoder, VideoAutoencoderConfig),
    "text_encoder": (CaptionEncoder, CaptionEncoderConfig),
    MOTION: (MotionNetwork, MotionConfig),
    CONTROL: (ControlNet, ImageUNetConfig),
    FEATURES: (VideoFeatures, VideoFeaturesConfig),
    TEMPORAL_VAE: (TemporalVAE, TemporalVAEConfig),
}
DENOISERS: dict[type, tuple[Any, type]] = {
    TextToVideoRecipe: (TextToVideoUNet, TextToVideoUNetConfig),
    HiGenRecipe: (HiGenUNet, HiGenUNetConfig),
    VersVideoRecipe: (VersVideoUNet, VersVideoUNetConfig),
    ImageRecipe: (ImageUNet, ImageUNetConfig),
    ExpertRecipe: (SpaceTimeUNet, SpaceTimeUNetConfig),
    Show1Recipe: (PixelUNet, PixelUNetConfig),
    MaskRecipe: (LatentVideoUNet, LatentVideoUNetConfig),
}


class Trained:
    """What a run folder or one of its checkpoints holds: recipe, facts, step, revision, networks."""

    def __init__(self, source: Path, weights: str = "ema") -> None:
        path = checkpoints.newest(source) if source.is_dir() else source
        state = checkpoints.read(path)
        self.recipe: Recipe = read_recipe(state["recipe"], str(path))
        self.facts, self.step = state["facts"], state["step"]
        tensors = state["ema"]["networks"] if weights == "ema" else state["networks"]
        self.networks: dict[str, nn.Module] = {}
        for role, config in state["configs"].items():
            network, kind = DENOISERS[type(self.recipe)] if role == "diffusion_model" else NETWORKS[role]
            if isinstance(self.recipe, VersVideoControlRecipe) and role == CONTROL:
                network, kind = UnifiedControlNet, UnifiedControlConfig
            self.networks[role] = network(read_section(kind, config, f"{path}: {role}."))
            self.networks[role].load_state_dict(tensors[role])
            self.networks[role].eval().requires_grad_(False)
        run = path.parent.parent
        self.revision = trained_revision(run / "run.json")
        self.held_out = validation(run / "metrics.jsonl", self.step) if weights == "ema" else {}
        copy = run / COPY_NAME
        if "vae" not in self.networks and copy.exists():
            self.networks["vae"] = read_autoencoder(copy).eval().requires_grad_(False)


def export(sources: list[Path], out: Path, weights: str = "ema", scores: Path | None = None) -> dict[str, int]:
    """Write a bundle of the networks of all sources, later ones first in doubt; returns parameters by component.

    A text-to-video run brings the autoencoder that it was trained on. A run around an image model gives a file of its
    motion modules, or its ControlNet, alone; so does that of a temporal decoder, where it is the only source. Raises
    InputError for unusable sources or an output that is not named .safetensors.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: found the ending {out.suffix!r}, expected .safetensors")
    components: dict[str, nn.Module] = {}
    trained = [Trained(source, weights) for source in sources]
    for part in trained:
        components |= part.networks
    if any(isinstance(part.recipe, AddedRecipe) for part in trained):
        return _export_alone(trained, out, scores)
    if len(trained) == 1 and TEMPORAL_VAE in components:
        return _export_temporal_vae(trained[0], out, scores)
    main = next((part for part in trained if isinstance(part.recipe, DenoiserRecipe)), trained[-1])
    schedule = NoiseSchedule()
    if isinstance(main.recipe, DenoiserRecipe):
        schedule = main.recipe.schedule.noise_schedule()
    metadata = _metadata(main, trained, scores)
    latent = _latent_spec(main, components)
    parts = {role: _as_exported(network) for role, network in components.items()}
    assert not isinstance(main.recipe, AddedRecipe)
    save_bundle(out, parts, system=main.recipe.system, latent=latent, schedule=schedule, metadata=metadata)
    return {role: _size(part) for role, part in parts.items()}


def _as_exported(network: nn.Module) -> nn.Module | Component:
    """Image models by ComfyUI's names; VersVideo's experts are merged."""
    if isinstance(network, ImageUNet):
        return component_of(network)
    return network.merged() if isinstance(network, VersVideoUNet) else network


def _size(part: nn.Module | Component) -> int:
    """Parameters of a component."""
    tensors = part.tensors.values() if isinstance(part, Component) else part.parameters()
    return sum(tensor.numel() for tensor in tensors)


def _metadata(main: Trained, trained: list[Trained], scores: Path | None) -> dict[str, object]:
    metadata: dict[str, object] = {
        "dataset": to_table(main.recipe.data),
        "dataset_seed": main.recipe.data.seed,
        "steps": {part.recipe.task: part.step for part in trained},
        "revision": git_revision(),
        "training_revisions": {part.recipe.task: part.revision for part in trained},
        "held_out": {part.recipe.task: part.held_out for part in trained},
    }
    if scores is not None:
        metadata["scores"] = _read_scores(scores)
    return metadata


def _export_alone(trained: list[Trained], out: Path, scores: Path | None) -> dict[str, int]:
    """The motion network or ControlNet of one run, without its image model."""
    main = trained[0]
    if len(trained) > 1 or not isinstance(main.recipe, AddedRecipe):
        raise InputError(
            f"found {len(trained)} sources, expected one: motion modules, and a ControlNet, are a file of their own"
        )
    recipe, said = main.recipe, _metadata(main, trained, scores)
    if isinstance(recipe, VersVideoControlRecipe):
        control = main.networks[CONTROL]
        assert isinstance(control, UnifiedControlNet)
        save_unified_control(out, control.half(), None, denoiser=Path(recipe.denoiser.path).name, **said)
        return {CONTROL: sum(p.numel() for p in control.parameters())}
    said = {"resolution": recipe.data.size, "image_model": Path(recipe.image_model.path).name, **said}
    role, network = next((role, main.networks[role]) for role in (MOTION, CONTROL) if role in main.networks)
    if isinstance(recipe, HarivoRecipe):
        assert isinstance(network, MotionNetwork)
        halves, schedule = network.half(), recipe.schedule.noise_schedule()
        save_motion(out, halves, schedule, **encode_metadata({"fps": recipe.fps} | said))
    else:
        assert isinstance(network, ControlNet)
        save_control_net(out, network, system="control", hint="canny", **to_table(recipe.hints), **said)
    return {role: sum(p.numel() for p in network.parameters())}


def _export_temporal_vae(trained: Trained, out: Path, scores: Path | None) -> dict[str, int]:
    """The temporal decoder without the autoencoder that it goes around."""
    recipe, network = trained.recipe, trained.networks[TEMPORAL_VAE]
    assert isinstance(recipe, TemporalVAERecipe) and isinstance(network, TemporalVAE)
    said = {"autoencoder": Path(recipe.autoencoder.path).name, **_metadata(trained, [trained], scores)}
    save_temporal_vae(out, network.half(), **said)
    return {TEMPORAL_VAE: sum(p.numel() for p in network.parameters())}


def _latent_spec(main: Trained, components: dict[str, nn.Module]) -> LatentSpec:
    if isinstance(main.recipe, Show1Recipe):
        return LATENT  # whatever else the network reads
    if isinstance(main.recipe, DenoiserRecipe):
        masked = isinstance(main.recipe, MaskRecipe)
        network = main.recipe.network
        return LatentSpec(channels=network.out_channels if masked else network.in_channels, **main.facts)
    autoencoder = components.get("vae")
    if not isinstance(autoencoder, VideoAutoencoder):
        return LatentSpec()
    frames, height, _ = autoencoder.config.downsample
    return LatentSpec(channels=autoencoder.config.embed_dim, spatial=height, temporal=frames)


def trained_revision(path: Path) -> str:
    """The revision of the source that a run's description names, "unknown" without one: a checkpoint alone will do."""
    if not path.exists():
        return "unknown"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no description of a run ({error!r}); repair or remove it") from error


def validation(path: Path, step: int) -> dict[str, float]:
    """What was measured of the averaged weights on held-out clips at a step; nothing without a record."""
    rows = [row for row in read_rows(path) if row["step"] == step]
    prefix = "validation_"
    return {name.removeprefix(prefix): row[name] for row in rows for name in row if name.startswith(prefix)}


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in scores.items() if name != "videos"}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no score table of `evaluate`: {error}") from error
