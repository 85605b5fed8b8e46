"""Training VersVideo's unified ControlNet with the denoiser frozen (section 3.4).

Shapes: B clips, Z latent channels, T frames, H, W pixels or latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.networks.caption_encoder import CaptionEncoder
from ..kernels.networks.unified_control import HINT_FACTOR, UnifiedControlNet
from ..kernels.networks.versvideo import VersVideoUNet
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from .condition_maps import ClipMaps
from .config import VersVideoControlRecipe
from .control_net import CONTROL
from .first_stage import latent_layout
from .latents import Latents
from .opened import open_networks
from .settings import RecipeError
from .task import Batch
from .text import FrozenCaptions, FrozenClip, TextEncoder
from .text_settings import ClipText
from .text_to_video_task import TextToVideoTask


class VersVideoControlTask(TextToVideoTask):
    """The loss of the denoiser on clips, of which in every batch maps of one condition are given."""

    recipe: VersVideoControlRecipe
    role = CONTROL

    def __init__(self, recipe: VersVideoControlRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        self.opened = open_networks(Path(recipe.denoiser.path))
        found = self.opened.networks.get(MODEL)
        if not isinstance(found, VersVideoUNet):
            held = ", ".join(self.opened.networks)
            raise RecipeError(f"denoiser.path: {recipe.denoiser.path} holds {held}, expected a VersVideoUNet")
        self.denoiser = found.merged().to(device)
        self.maps, self.held_out_maps = (
            ClipMaps(recipe.data, split, recipe.conditions, recipe.hints) for split in ("train", "held_out")
        )
        super().__init__(recipe, folder, device, mixed)

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Moments, tokens, maps (B, T, 3, H, W) of one condition, and its number (B,)."""
        # Of a batch, conditions follow its clips: no generator is used, and none is preferred.
        condition = int(indices.sum() + epochs.sum()) % len(self.recipe.conditions)
        return *super().batch(indices, epochs), *self._given(self.maps, self.train_latents, indices.tolist(), condition)

    def _given(self, maps: ClipMaps, latents: Latents, numbers: list[int], condition: int) -> tuple[Tensor, Tensor]:
        hints = maps(condition, [latents.indices[number] for number in numbers])
        return hints, torch.full((len(numbers),), condition)

    def _extras(self, latents: Latents, numbers: list[int]) -> tuple[Tensor, ...]:
        # Validation sees the first condition alone; what batches are given they add themselves.
        return self._given(self.held_out_maps, latents, numbers, 0) if latents is self.held_out_latents else ()

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        hints, condition = extras
        return {"hints": hints, "condition": condition}

    def _predict(self, network: nn.Module, noisy: Tensor, times: Tensor, context: Tensor, **cues: Tensor) -> Tensor:
        name = self.recipe.conditions[int(cues["condition"][0])]
        control = network(noisy, times, context, cues["hints"], name)
        predicted: Tensor = self.denoiser(noisy, times, context, control)
        return predicted

    def _build_network(self) -> nn.Module:
        return UnifiedControlNet.of(self.denoiser, self.recipe.conditions).requires_grad_(True)

    def _open_text(self, captions: list[str]) -> TextEncoder:
        if isinstance(self.recipe.text_encoder, ClipText):
            return FrozenClip(self.recipe.text_encoder)
        encoder = self.opened.networks.get(TEXT_ENCODER)
        if not isinstance(encoder, CaptionEncoder):
            raise RecipeError(
                f'text_encoder.kind: {self.recipe.denoiser.path} has no caption encoder; expected kind = "clip" and '
                "its path"
            )
        return FrozenCaptions(encoder, saved=False)

    def _scale_and_shift(self) -> tuple[float, float]:
        return self.opened.facts["scale"], self.opened.facts["shift"]

    def _network_channels(self) -> tuple[str, int]:
        return "denoiser", self.denoiser.config.in_channels

    def _check_width(self, text_width: int) -> None:
        found = self.denoiser.config.context_width
        if found != text_width:
            raise RecipeError(f"denoiser: reads text of width {found}, the text encoder has {text_width}")

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (frames, *sizes) = latent_layout(self.autoencoder)
        if frames != 1 or set(sizes) != {HINT_FACTOR}:
            raise RecipeError(
                f"autoencoder: has one latent for {frames} frames of {sizes[0]} x {sizes[1]} pixels, expected 1 frame "
                f"of {HINT_FACTOR} x {HINT_FACTOR}: to these adapters bring maps"
            )
        if self.opened.schedule != self.schedule:
            raise RecipeError(
                f"schedule: found {self.schedule}, expected {self.opened.schedule}: the denoiser's, by which it samples"
            )
