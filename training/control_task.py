"""Training a ControlNet for a frozen image model, on single frames and pictures of their edges.

Shapes: B clips, Z latent channels, T frames, H, W frames or latents.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import ControlRecipe
from .control_net import CONTROL, HINT_FACTOR, ControlNet
from .control_settings import EdgeHints
from .first_stage import latent_layout
from .image_model_task import ImageModelTask
from .image_task import single_frames
from .latents import Latents
from .settings import RecipeError
from .task import Batch, Losses

BITS = 2 ** torch.arange(8)


class ControlTask(ImageModelTask):
    """The loss of the image model on one frame of each clip, whose edges are given."""

    recipe: ControlRecipe
    role = CONTROL

    def __init__(self, recipe: ControlRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed, PackedEdges(recipe.hints))

    def losses(self, batch: Batch, step: int) -> Losses:
        """Weighted mean squared error of the noise."""
        return super().losses(single_frames(batch), step)

    def _predict(self, network: nn.Module, noisy: Tensor, times: Tensor, context: Tensor, **cues: Tensor) -> Tensor:
        predicted: Tensor = network(self.image_unet, noisy, times, context, **cues)
        return predicted

    def _extras(self, latents: Latents, numbers: list[int]) -> tuple[Tensor, ...]:
        return (latents.features(numbers),)

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        (packed,) = extras
        return {"hints": unpacked(packed, self.recipe.data.size)}

    def _build_network(self) -> nn.Module:
        return ControlNet.of(self.image_unet, self.recipe.image_model.path)

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (_, *sizes) = latent_layout(self.autoencoder)
        if set(sizes) != {HINT_FACTOR}:
            raise RecipeError(
                f"autoencoder: has one latent for {sizes[0]} x {sizes[1]} pixels, expected {HINT_FACTOR} x "
                f"{HINT_FACTOR}: to as many pixels ComfyUI scales the hints of a ControlNet"
            )
        for name, expected in asdict(self.image.schedule).items():
            found = getattr(self.schedule, name)
            if found != expected:
                raise RecipeError(
                    f"schedule.{name}: found {found!r}, expected {expected!r}: the image model's, by which it samples"
                )


class PackedEdges:
    """Edges of frames by the function that ComfyUI's Canny node calls, eight pixels in a number."""

    def __init__(self, settings: EdgeHints) -> None:
        self.settings = settings
        self.name = f"canny {settings.low_threshold} {settings.high_threshold}"

    def __call__(self, videos: Tensor) -> Tensor:
        """Videos (B, T, H, W, 3) uint8 -> (B, T, H W / 8), whole numbers up to 255."""
        edges = edges_of(videos.flatten(0, 1).movedim(-1, 1).float().div(255), self.settings)
        return (edges.flatten(1).unflatten(1, (-1, 8)) @ BITS.float()).unflatten(0, videos.shape[:2])


def edges_of(pictures: Tensor, settings: EdgeHints) -> Tensor:
    """Pictures (B, 3, H, W), 0..1 -> (B, 1, H, W), 1 on an edge."""
    from kornia.filters import canny

    _, edges = canny(pictures, settings.low_threshold, settings.high_threshold)
    return edges


def unpacked(packed: Tensor, size: int) -> Tensor:
    """Edges of frames with height and width `size`, (B, T, size^2 / 8), as pictures (B, T, 3, size, size)."""
    edges = packed.long()[..., None].bitwise_and(BITS.to(packed.device)).ne(0).float()
    return edges.flatten(2).unflatten(2, (1, size, size)).expand(-1, -1, 3, -1, -1)
