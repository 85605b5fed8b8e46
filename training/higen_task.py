"""Training HiGen: pictures and videos with one set of weights, steered by cues measured on the clips (section 3).

Shapes: B clips, Z latent channels, T, H, W latents, D feature width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.analysis.content import amount_features, measured_appearance, measured_motion, similarity_rows
from ..kernels.networks.higen import HiGenUNet
from .config import HiGenRecipe
from .first_stage import latent_layout
from .higen_settings import ColourFeatures, EncoderFeatures
from .latents import Latents
from .operations import TrainingOperations
from .pictures import PictureTask
from .settings import RecipeError
from .text_to_video_task import initialize_denoiser

NEW_LAYERS = ("temporal", "resampler", "prior_in", "motion_embedding", "appearance_embedding", "time_embedding")
"""Parts of names of layers that an image model does not have, or whose gradients are not scaled."""


class HiGenTask(PictureTask):
    """Videos around a clean prior, their middle frame; every few steps single frames without prior and cues."""

    recipe: HiGenRecipe

    def __init__(self, recipe: HiGenRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed, frame_features(recipe.cues.features, device))

    def before_step(self) -> None:
        """Layers that come from an image model learn more slowly."""
        factor = self.recipe.spatial_gradient
        for name, parameter in self.unet.named_parameters() if factor != 1.0 else ():
            if parameter.grad is not None and not any(part in name for part in NEW_LAYERS):
                parameter.grad.mul_(factor)

    def _build_network(self) -> nn.Module:
        network = HiGenUNet(self.recipe.network, operations=TrainingOperations)
        initialize_denoiser(network, self.recipe.initialization)
        return network

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (frames, *_) = latent_layout(self.autoencoder)
        if frames != 1:
            raise RecipeError(f"autoencoder: has one latent for {frames} frames, HiGen needs one for each")
        if self.recipe.data.frames < 2:
            raise RecipeError(f"data.frames: found {self.recipe.data.frames}, expected at least 2")

    def _extras(self, latents: Latents, numbers: list[int]) -> tuple[Tensor, ...]:
        # Motion of the posteriors' means: what a draw adds from frame to frame is none.
        mean, _ = latents.take(numbers)
        scaled = (mean.float() + self.facts["shift"]) * self.facts["scale"]
        return latents.features(numbers), measured_motion(scaled.transpose(1, 2)).long()

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        features, motion = extras
        frames = latents.shape[2]
        pairs = measured_appearance(features, self.recipe.cues.similarity)
        prior = latents[:, :, frames // 2]
        if step is not None and step < self.recipe.prior_start:
            prior = prior.mean(dim=(2, 3), keepdim=True).expand_as(prior)
        return {
            "prior": prior,
            "motion": motion,
            "appearance": similarity_rows(pairs, frames),
        }


class Colours:
    """How much colour frames show; needs no image encoder."""

    name = "amount of colour"

    def __call__(self, videos: Tensor) -> Tensor:
        """Videos (B, T, H, W, 3) uint8 -> (B, T, D)."""
        return amount_features(videos.float().div(255))


class ImageEncoder:
    """Features of whole images by DINOv2, or CLIP's projected ones, from a folder in transformers' layout."""

    def __init__(self, path: Path, device: torch.device) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

        if not path.is_dir():
            raise RecipeError(f"cues.features.path: {path} is no folder with an image encoder and its processor")
        self.name = str(path.resolve())
        self.device = device
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        model = CLIPVisionModelWithProjection if kind.startswith("clip") else AutoModel
        self.network = model.from_pretrained(path, local_files_only=True).eval().requires_grad_(False).to(device)
        self.processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Videos (B, T, H, W, 3) uint8 -> (B, T, D)."""
        frames = videos.flatten(0, 1).permute(0, 3, 1, 2)
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.device)
        found = self.network(**inputs)
        features = found.image_embeds if hasattr(found, "image_embeds") else found.pooler_output
        rows: Tensor = features.float().cpu().unflatten(0, videos.shape[:2])
        return rows


def frame_features(settings: EncoderFeatures | ColourFeatures, device: torch.device) -> Colours | ImageEncoder:
    """The features that a recipe names."""
    return Colours() if isinstance(settings, ColourFeatures) else ImageEncoder(Path(settings.path), device)
