"""Training HARIVO: motion for a frozen image model (arXiv 2410.07763, Section 3).

Shapes: B clips, N tokens, D their width, Z latent channels, F, H, W latents, C channels of the deepest features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.layers.attention import FeedForward
from ..kernels.layers.transformers import TemporalBlock, Transformer
from ..kernels.networks.caption_encoder import CaptionEncoder
from ..kernels.networks.harivo import FrameTokensConfig, MappingConfig, MotionConfig, MotionNetwork
from ..kernels.sampling.schedules import add_noise
from ..model_loaders.harivo import LEVELS, MOTION
from .config import HarivoRecipe
from .data.captions import with_other_directions
from .distributed import drawn, gathered, mean_of_all, own
from .first_stage import latent_layout
from .image_model_task import ImageModelTask
from .image_task import captions_with_places, tokens_with_places
from .latents import Latents
from .motion_losses import (
    ContrastiveProjection,
    FeatureQueue,
    decoupled_contrastive,
    image_regularization,
    temporal_regularized_self_attention,
)
from .motion_settings import MotionParts
from .moving_unet import MovingUNet, UNet2DConditionModel
from .operations import TrainingOperations
from .place_words import PlaceWords
from .settings import RecipeError
from .start_settings import MotionStart
from .task import Batch, Losses
from .teacher import familiar_clips, open_teacher
from .text import TextEncoder


class HarivoTask(ImageModelTask):
    """The error of the noise with motion, and what keeps clips smooth and near to the image model."""

    recipe: HarivoRecipe
    unet: MotionNetwork
    role = MOTION

    _with_places: Tensor | None = None
    """Tokens of captions that say where things are in every frame (clips, T, N), where a loss asks for them."""
    _familiar: Tensor | None = None
    """Which clips the teacher knows (clips,), where there is one."""

    def __init__(self, recipe: HarivoRecipe, folder: Path, device: torch.device, mixed: bool) -> None:
        super().__init__(recipe, folder, device, mixed)
        self.moving = MovingUNet(self.image_unet)
        captions, (channels, _) = self.train_latents.captions, latent_layout(self.autoencoder)
        self._teacher = open_teacher(
            recipe.teacher, self.schedule, channels, self.text_encoder, captions, with_other_directions, device
        )
        if self._teacher is not None:
            self._familiar = familiar_clips(recipe.teacher, self.clips, self.clip_count)
        if recipe.losses.tokens_first:
            assert isinstance(self.text_encoder, CaptionEncoder)
            self._place_words = PlaceWords(self.text_encoder.config, recipe.network.frame_tokens)
        if recipe.losses.contrast:
            channels = self.unet.config.widths[-1]
            projection = ContrastiveProjection(channels, _deepest_size(recipe.data.size // self.facts["spatial"]))
            queue = FeatureQueue(recipe.losses.queue, channels)
            self.companions |= {"projection": projection.to(device), "queue": queue.to(device)}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer for the motion network and the projection that is dropped after training."""
        trained = (self.networks | self.companions).values()
        return {"denoiser": [weight for network in trained for weight in network.parameters()]}

    def losses(self, batch: Batch, step: int) -> Losses:
        """Those of clips; in the recipe's first steps that of the frame tokens alone."""
        alone = step < self.recipe.losses.tokens_first
        return self._tokens_alone(*batch[2:4]) if alone else super().losses(batch, step)

    def _tokens_alone(self, tokens: Tensor, placed: Tensor) -> Losses:
        """Frame tokens become the words for places in the captions of frames (B, F, N), from those of clips (B, N)."""
        assert self.unet.tokens is not None
        made = self.unet.tokens(self._encode_text({}, tokens))[:, : placed.shape[1]].flatten(0, 1)
        with torch.no_grad():
            words, count = self._place_words(placed.flatten(0, 1), self.text_encoder(placed.flatten(0, 1)))
        # The mean over all words of the batch, of which its clips have more or less.
        loss = (made - words).square().sum(dim=2)[count].sum() / mean_of_all(count.sum().float())
        return Losses({"denoiser": loss}, {"loss": loss})

    def _objective(self, latents: Tensor, tokens: Tensor, **cues: Tensor) -> Losses:
        """L_simple + the weighted sum of L_TRS, L_reg and L_DC, of those that have a weight (Section 3.4).

        To which those with `places` add how far the prediction is from the image model's with captions of the frames.
        """
        weights, preference = self.recipe.losses, self._preference(latents, tokens)
        teacher, taught = self._teacher, torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        if teacher is not None:
            tokens, taught = map(own, teacher.choose(gathered(tokens), gathered(cues["familiar"])))
        times, tokens, noise = self._draw(latents, tokens)
        noisy, context = add_noise(self.schedule, latents, times, noise), self._encode_text({}, tokens)
        changes: list[Tensor] | None = [] if weights.attention else None
        deepest: list[Tensor] | None = [] if weights.contrast else None
        predicted = self.moving(self.unet, noisy, times, context, changes=changes, deepest=deepest)
        target = noise if teacher is None else teacher.targets(latents, times, noise, tokens, taught, self.facts)
        errors = self._errors(predicted, latents, times, target)
        metrics = {"loss": errors.mean()} | ({"taught": errors[taught].mean()} if taught.any() else {})
        total = self._weighted(errors if teacher is None else teacher.weights(taught) * errors, times, latents)
        if changes:
            metrics["attention"] = temporal_regularized_self_attention(changes)
            total = total + weights.attention * metrics["attention"]
        if weights.places:
            named = (tokens != self.empty_tokens).any(dim=1)
            placed = self._frame_by_frame(noisy, times, cues["frame_tokens"])
            distances = (predicted.float() - placed.float()).square().mean(dim=(1, 2, 3, 4))
            metrics["places"] = self._weighted(named * distances, times, latents)
            total = total + weights.places * metrics["places"]
        if weights.image:
            alone = self.moving(self.unet, noisy, times, context, still=True)
            metrics["image"] = image_regularization(predicted.float(), alone.float(), times, self.schedule.steps)
            total = total + weights.image * metrics["image"]
        if deepest:
            contrast = self._contrast(deepest[0].unflatten(0, (len(latents), -1)))
            if contrast is not None:
                metrics["contrast"] = contrast
                total = total + weights.contrast * contrast
        losses = Losses({"denoiser": total}, metrics)
        return losses if preference is None else self._with_preference(losses, preference)

    def _frame_by_frame(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """What the image model predicts, without gradients, for frames with captions of their own (B, F, N)."""
        frames = noisy.shape[2]
        rows = noisy.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            context = self.text_encoder(tokens.flatten(0, 1))
            out: Tensor = self.image_unet(rows, times.repeat_interleave(frames), context, return_dict=False)[0]
        return out.unflatten(0, (-1, frames)).transpose(1, 2)

    def _contrast(self, deepest: Tensor) -> Tensor | None:
        """L_DC of two random frames of each clip (B, F, C, H, W); None in a run's first step, without negatives."""
        clips, frames = deepest.shape[:2]
        chosen = drawn(lambda rows: torch.rand(rows, frames, device=deepest.device), clips).argsort(dim=1)[:, :2]
        pairs = deepest[torch.arange(clips, device=deepest.device)[:, None], chosen]
        first, second = self.companions["projection"](pairs.transpose(0, 1).flatten(0, 1)).float().chunk(2)
        queue = self.companions["queue"]
        assert isinstance(queue, FeatureQueue)
        negatives = queue.newest()
        queue.add(torch.cat([gathered(first), gathered(second)]))
        return decoupled_contrastive(first, second, negatives) if len(negatives) else None

    def _predict(self, network: nn.Module, noisy: Tensor, times: Tensor, context: Tensor, **cues: Tensor) -> Tensor:
        assert isinstance(network, MotionNetwork)
        return self.moving(network, noisy, times, context)

    def _open_text(self, captions: list[str]) -> TextEncoder:
        text, losses = super()._open_text(captions), self.recipe.losses
        key = "losses.places" if losses.places else "losses.tokens_first"
        if losses.places or losses.tokens_first:
            pictures = captions_with_places(self.clips, len(captions))
            self._with_places = tokens_with_places(pictures, len(captions), text, key)
        return text

    def _extras(self, latents: Latents, numbers: list[int]) -> tuple[Tensor, ...]:
        if latents is not self.train_latents:
            return ()
        return tuple(known[numbers] for known in (self._with_places, self._familiar) if known is not None)

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        kinds = {"frame_tokens": self._with_places, "familiar": self._familiar}
        return dict(zip((name for name, known in kinds.items() if known is not None), extras, strict=False))

    def _build_network(self) -> nn.Module:
        config = motion_config(self.recipe.network, self.image_unet, self.tokens.shape[1])
        network = MotionNetwork(config, operations=TrainingOperations)
        start_motion(network, self.recipe.initialization)
        return network

    def _check_image_model(self) -> None:
        check_layout(self.image_unet, self.recipe.image_model.path)


def check_layout(unet: UNet2DConditionModel, path: str) -> None:
    """Raise RecipeError for an image model that motion modules of Stable Diffusion 1.5 do not fit."""
    config = unet.config
    expected = f"expected the layout of Stable Diffusion 1.5: {LEVELS} levels, transformers with one block"
    if len(config.block_out_channels) != LEVELS:
        raise RecipeError(f"image_model: {path} has {len(config.block_out_channels)} levels, {expected}")
    if not isinstance(config.layers_per_block, int) or config.transformer_layers_per_block != 1:
        raise RecipeError(
            f"image_model: {path} has {config.layers_per_block} residual blocks in a level and "
            f"{config.transformer_layers_per_block} blocks in a transformer, {expected}"
        )
    if config.in_channels != config.out_channels:
        raise RecipeError(
            f"image_model: {path} reads {config.in_channels} channels and predicts {config.out_channels}, expected a "
            "model that is neither for inpainting nor for editing"
        )


def motion_config(parts: MotionParts, unet: UNet2DConditionModel, text_tokens: int) -> MotionConfig:
    """What fits an image model that reads texts of so many tokens."""
    config = unet.config
    mapping = MappingConfig(config.in_channels, heads=parts.mapping_heads, head_width=parts.mapping_head_width)
    tokens = FrameTokensConfig(config.cross_attention_dim, text_tokens, parts.max_frames, parts.frame_tokens)
    return MotionConfig(
        tuple(config.block_out_channels),
        config.layers_per_block,
        parts.middle,
        parts.max_frames,
        mapping=mapping if parts.mapping else None,
        tokens=tokens if parts.frame_tokens else None,
    )


def start_motion(network: MotionNetwork, settings: MotionStart) -> None:
    """Motion modules without effect unless they have a gain, and a mapping network that changes nothing."""
    for module in network.modules():
        if isinstance(module, Transformer):
            for parameter in module.project_out.parameters():
                parameter.data.mul_(settings.motion_gain)
        elif isinstance(module, TemporalBlock):
            for attention in (module.attention1, module.attention2):
                queries, *_ = attention.qkv.weight.data.chunk(3)
                queries.mul_(settings.frame_focus)
        elif isinstance(module, FeedForward):
            module.inner.weight.data.mul_(settings.feed_forward_gain)
    if network.mapping is not None:
        for layer in (network.mapping.convs[1], network.mapping.project_out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
    if network.tokens is not None:
        for layer in (network.tokens.project_in, network.tokens.mix, *network.tokens.layers):
            layer.weight.data.mul_(settings.token_gain)


def _deepest_size(size: int) -> int:
    """Height and width of the deepest features for latents of a size: each level but the last halves it, rounded up."""
    for _ in range(LEVELS - 1):
        size = (size + 1) // 2
    return size
