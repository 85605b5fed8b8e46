"""What a recipe needs, found without training and without data being read: networks stand on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.layers.operations import TorchOperations
from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoder
from ..kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from . import distributed
from .config import (
    AutoencoderRecipe,
    DenoiserRecipe,
    FeaturesRecipe,
    HiGenRecipe,
    ImageRecipe,
    MaskRecipe,
    Recipe,
    Show1Recipe,
)
from .data.captions import caption_terms
from .data.folder import find_sources
from .data.labels import LABELS
from .discriminator import PatchDiscriminator
from .export import DENOISERS
from .sections import FolderData, ImageFirstStage, MovingShapesData, ShardData, frame_size
from .settings import InputError
from .show1_task import windows
from .text_settings import CaptionText

TRAINED, COMPANION = 20, 16
"""Bytes for each trained value in float32: weight, gradient, AdamW's two means, and the average; without the last."""
PATCH = 8
"""Pixels under a latent of Stable Diffusion's autoencoder."""
TEXT_TOKENS = 77


class _Attention(torch.autograd.Function):
    """What attention keeps where no table of all pairs of tokens is made, as on a GPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Nothing is computed: there are no values."""
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


class _Operations(TorchOperations):
    """torch.nn for networks without values."""

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            """Leave the table as it is: drawing it loads a compiler, which takes seconds."""

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """See TorchOperations."""
        out: Tensor = _Attention.apply(query, key, value)
        return out


def describe_plan(recipe: Recipe, folder: Path) -> list[str]:
    """Lines for a dry run: parameters by network and part, memory, steps per epoch."""
    networks, companions = _networks(recipe)
    lines = [f"{recipe.task}, {recipe.run.steps} steps, in {folder}"]
    for role, network in (networks | companions).items():
        lines.append(f"  {role}: {_millions(_size(network))}")
        for name, part in _parts(network):
            lines.append(f"    {name}".ljust(28) + _millions(_size(part)))
    if not networks:
        lines.append("  parameters: known once the model that it is trained around is opened")
    return lines + _memory(recipe, networks, companions) + _epochs(recipe)


def _networks(recipe: Recipe) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Trained networks and their companions, without values, of what the recipe alone says."""
    with torch.device("meta"):
        if isinstance(recipe, AutoencoderRecipe):
            discriminator = PatchDiscriminator(recipe.loss.discriminator_channels)
            return {"vae": VideoAutoencoder(recipe.network)}, {"discriminator": discriminator}
        if isinstance(recipe, FeaturesRecipe):
            config = VideoFeaturesConfig(recipe.channels, LABELS, recipe.data.frames, recipe.data.size)
            return {"features": VideoFeatures(config)}, {}
        if not isinstance(recipe, DenoiserRecipe):
            return {}, {}
        network, _ = DENOISERS[type(recipe)]
        given = {} if isinstance(recipe, ImageRecipe) else {"operations": _Operations}
        networks: dict[str, nn.Module] = {"diffusion_model": network(recipe.network, **given)}
        text = None if isinstance(recipe, MaskRecipe) else recipe.text_encoder
        if isinstance(text, CaptionText) and isinstance(recipe.data, MovingShapesData):
            encoder = CaptionEncoderConfig(caption_terms(), text.width, text.layers, text.heads, text.max_tokens)
            networks["text_encoder"] = CaptionEncoder(encoder)
    return networks, {}


def _parts(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a network by name, of a walk down and up its own ones."""
    parts = []
    for name, part in network.named_children():
        inner = list(part.named_children()) if name == "skeleton" else []
        parts += [(f"{name}.{each}", module) for each, module in inner] or [(name, part)]
    return [(name, part) for name, part in parts if _size(part)]


def _memory(recipe: Recipe, networks: dict[str, nn.Module], companions: dict[str, nn.Module]) -> list[str]:
    if not networks:
        return []
    trained, beside = (sum(map(_size, each.values())) for each in (networks, companions))
    state = trained * TRAINED + beside * COMPANION
    lines = [f"memory: {_gigabytes(state)} of weights, gradients, optimizer and averages"]
    if recipe.run.sharded:
        lines[0] += ", shared out among the processes"
    kept = _activations(recipe, networks)
    if kept is not None:
        size = recipe.run.batch_size
        lines.append(f"  and {_gigabytes(kept)} for the forward pass of {size} clips in float32, half in bf16")
        lines[-1] += ", less with activation checkpointing" if recipe.run.activation_checkpointing else ""
    return [*lines, "  frozen networks (autoencoder, text encoder) come on top"]


def _activations(recipe: Recipe, networks: dict[str, nn.Module]) -> int | None:
    """Bytes that a forward pass keeps for the backward pass; None where the latents' size is not known beforehand."""
    if not isinstance(recipe, DenoiserRecipe) or isinstance(recipe, ImageRecipe | MaskRecipe):
        return None
    frames, patch = recipe.data.frames, PATCH
    if isinstance(recipe, Show1Recipe):
        frames, patch = windows(recipe.stage, frames)[0], recipe.pixels.shrink
    elif not isinstance(recipe.autoencoder, ImageFirstStage):
        return None
    network, count = networks["diffusion_model"], recipe.run.batch_size
    height, width = (side // patch for side in frame_size(recipe.data))
    config = recipe.network
    text = getattr(config, "text_width", None) or config.context_width
    x = torch.empty(count, config.in_channels, frames, height, width, device="meta")
    times, context = torch.zeros(count, device="meta"), torch.empty(count, TEXT_TOKENS, text, device="meta")
    cues = {}
    if isinstance(recipe, HiGenRecipe):
        cues = {"prior": x[:, :, 0], "motion": torch.zeros(count, frames - 1, device="meta")}
    elif isinstance(recipe, Show1Recipe) and recipe.network.noise_levels:
        cues = {"noise_level": torch.zeros(count, dtype=torch.int64, device="meta")}
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x, times, context, **cues)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _epochs(recipe: Recipe) -> list[str]:
    data, run = recipe.data, recipe.run
    if isinstance(data, ShardData):
        return [f"steps per epoch: not known before the archives of {data.path} are read"]
    clips = len(find_sources(Path(data.path))) if isinstance(data, FolderData) else data.count
    if isinstance(data, FolderData):
        if not Path(data.path).is_dir():
            return [f"steps per epoch: not known, data.path {data.path} is no folder"]
        clips -= data.held_out
    wanted = getattr(getattr(recipe, "autoencoder", None), "clips", 0) or clips
    clips, per_step = min(clips, wanted), run.batch_size * run.accumulation
    if clips < 1:
        raise InputError(f"data.path: found {clips} clips beside those held out, expected at least 1")
    return [
        f"steps per epoch: {clips / per_step:.1f} ({clips} clips, {per_step} in a step); the run sees them "
        f"{run.steps * per_step / clips:.1f} times",
        f"processes that can share a batch: {', '.join(str(n) for n in _divisors(run.batch_size))}; here "
        f"{distributed.size()}",
    ]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _millions(values: int) -> str:
    return f"{values / 1e6:.2f} M parameters"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
