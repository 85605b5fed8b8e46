"""Training what is added to a frozen image model: its latents, its text, and whether they fit each other."""

from __future__ import annotations

from pathlib import Path

import torch

from ..kernels.networks.caption_encoder import CaptionEncoder
from .config import ImageModelRecipe
from .first_stage import latent_layout
from .image_model import ImageModel, open_image_model
from .latents import FrameFeatures
from .moving_unet import UNet2DConditionModel
from .settings import RecipeError
from .text import FrozenCaptions, FrozenClip, TextEncoder
from .text_settings import ClipText
from .text_to_video_task import TextToVideoTask


class ImageModelTask(TextToVideoTask):
    """The loss of text to video for something around an image model, which stays as it is."""

    recipe: ImageModelRecipe

    def __init__(
        self,
        recipe: ImageModelRecipe,
        folder: Path,
        device: torch.device,
        mixed: bool,
        frame_features: FrameFeatures | None = None,
    ) -> None:
        self.recipe, self.image = recipe, open_image_model(Path(recipe.image_model.path))
        self._check_image_model()
        self.image_unet.to(device)
        super().__init__(recipe, folder, device, mixed, frame_features)
        if recipe.initialization.weights:
            self.facts = self._measure()  # the latents are the image model's, whatever is gone on from

    @property
    def image_unet(self) -> UNet2DConditionModel:
        """The frozen UNet."""
        return self.image.unet

    def _check_image_model(self) -> None:
        """Raise RecipeError for image models that nothing can be added to."""

    def _open_text(self, captions: list[str]) -> TextEncoder:
        return image_text(self.recipe, self.image)

    def _scale_and_shift(self) -> tuple[float, float]:
        return self.image.scale, self.image.shift

    def _check_latents(self) -> None:
        super()._check_latents()
        _, (frames, *_) = latent_layout(self.autoencoder)
        if frames != 1:
            raise RecipeError(f"autoencoder: has one latent for {frames} frames, an image model needs one for each")

    def _network_channels(self) -> tuple[str, int]:
        return "image_model", self.image_unet.config.in_channels

    def _check_width(self, text_width: int) -> None:
        found = self.image_unet.config.cross_attention_dim
        if found != text_width:
            raise RecipeError(f"image_model: reads text of width {found}, the text encoder has {text_width}")


def image_text(recipe: ImageModelRecipe, image: ImageModel) -> TextEncoder:
    """The frozen text encoder of the image model."""
    if isinstance(recipe.text_encoder, ClipText):
        return FrozenClip(recipe.text_encoder)
    if not isinstance(image.text_encoder, CaptionEncoder):
        raise RecipeError(
            f'text_encoder.kind: {recipe.image_model.path} has no caption encoder; expected kind = "clip" and its path'
        )
    return FrozenCaptions(image.text_encoder, saved=False)
