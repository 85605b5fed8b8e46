"""Training VersVideo's temporal decoder around a frozen image autoencoder (section 3.3).

Shapes: B clips, Z latent channels, T frames, H, W pixels, h, w latents, C channels of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.networks.temporal_vae import TemporalDecoder, TemporalVAE, TemporalVAEConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoder
from ..model_loaders.temporal_vae import TEMPORAL_VAE
from .config import TemporalVAERecipe
from .data.clips import open_clips, stack_readable, stack_videos, streams_of, to_pixels
from .discriminator import PatchDiscriminator
from .first_stage import FrozenAutoencoder, ImageAutoencoder, latent_layout, load_autoencoder
from .losses import GradientLoss, PerceptualLoss, adaptive_weight, hinge_loss, to_frames
from .operations import TrainingOperations
from .settings import RecipeError, Table
from .task import Batch, Losses, RareClips


class TemporalVAETask:
    """Decoded clips against real ones; gradients reach the added networks and the discriminator alone."""

    def __init__(self, recipe: TemporalVAERecipe, folder: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.autoencoder = load_autoencoder(recipe.autoencoder, folder).to(device)
        self._check_autoencoder()
        self.clips, self.held_out = open_clips(recipe.data, "train"), open_clips(recipe.data, "held_out")
        self.clip_count, self.streams = len(self.clips), streams_of(self.clips)
        self.rare_clips: RareClips | None = None
        widths = [_width(place) for place in decoder_places(self.autoencoder)]
        config = TemporalVAEConfig(
            widths=tuple(widths[::-1]),
            latent_channels=latent_layout(self.autoencoder)[0],
            refinement_channels=recipe.refinement.channels,
            refinement_mult=recipe.refinement.mult,
            refinement_blocks=recipe.refinement.blocks,
        )
        self.temporal = TemporalVAE(config, operations=TrainingOperations).to(device)
        self.temporal.start_as_image_decoder()
        channels = recipe.loss.discriminator_channels
        self.discriminator = PatchDiscriminator(channels, over_time=True).to(device)
        self.perceptual = (PerceptualLoss() if recipe.loss.perceptual == "lpips" else GradientLoss()).to(device)
        self.networks: dict[str, nn.Module] = {TEMPORAL_VAE: self.temporal}
        self.companions: dict[str, nn.Module] = {"discriminator": self.discriminator}
        self.facts: Table = {}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer for what is added to the decoder, one for the discriminator."""
        return {
            TEMPORAL_VAE: list(self.temporal.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Clips (B, T, H, W, 3) uint8."""
        return (stack_readable(self.clips, indices.tolist(), epochs.tolist())[0],)

    def losses(self, batch: Batch, step: int) -> Losses:
        """Absolute error, perceptual, adversarial and consistency loss, and the discriminator's."""
        settings = self.recipe.loss
        video = to_pixels(batch[0])
        latents, encoded = self._encode(video)
        decoded: list[Tensor] = []
        reconstruction = self._decoder(self.temporal)(latents, features=decoded).float()
        difference = (video - reconstruction).abs().mean()
        perceptual = self.perceptual(to_frames(video), to_frames(reconstruction)).mean()
        nll = difference + settings.perceptual_weight * perceptual
        total, metrics = nll, {"l1": difference, "perceptual": perceptual}
        if settings.consistency_weight:
            metrics["consistency"] = consistency(encoded, decoded)
            total = total + settings.consistency_weight * metrics["consistency"]
        objectives = {}
        if step >= settings.discriminator_start and settings.adversarial_weight:
            adversarial = -self.discriminator(reconstruction).float().mean()
            last_weight = self.temporal.refine.conv_out.weight
            weight = settings.adversarial_weight * adaptive_weight(nll, adversarial, last_weight)
            total = total + weight * adversarial
            objectives["discriminator"] = hinge_loss(
                self.discriminator(video).float(), self.discriminator(reconstruction.detach()).float()
            )
            metrics |= {"adversarial": adversarial, "adversarial_weight": weight}
            metrics["discriminator"] = objectives["discriminator"]
        objectives[TEMPORAL_VAE] = total
        return Losses(objectives, {"loss": total, **metrics})

    def before_step(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR (dB, frames in 0..1) of held-out clips, mean over them, and what it has gained over the image decoder;
        of the differences of neighbouring frames too, in which flicker shows."""
        network = networks[TEMPORAL_VAE]
        assert isinstance(network, TemporalVAE)
        image, rows = frame_decoder(self.autoencoder), []
        for index in range(min(self.recipe.run.validation_clips, len(self.held_out))):
            video = to_pixels(stack_videos(self.held_out, [index])[0].to(self.device))
            latents, _ = self._encode(video)
            plain = image(to_frames(latents)).unflatten(0, (1, -1)).transpose(1, 2)
            decoded = (self._decoder(network)(latents), plain)
            rows.append([value for each in decoded for value in _decibels(each, video)])
        if not rows:
            return {}
        psnr, changes, plain_psnr, plain_changes = torch.tensor(rows).mean(dim=0).tolist()
        return {
            "psnr": psnr,
            "psnr_gain": psnr - plain_psnr,
            "psnr_of_changes": changes,
            "psnr_of_changes_gain": changes - plain_changes,
        }

    @torch.no_grad()
    def _encode(self, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Clips (B, 3, T, H, W) -> latents (B, Z, T, h, w), the means, and features F_A, level 1 first."""
        features: list[Tensor] = []
        places: list[nn.Module] = []
        if self.recipe.loss.consistency_weight and isinstance(self.autoencoder, ImageAutoencoder):
            places = encoder_places(self.autoencoder)
        with _noted(places, features):
            mean, _ = self.autoencoder.moments(video)
        return mean, features

    def _decoder(self, network: TemporalVAE) -> TemporalDecoder:
        return TemporalDecoder(network, frame_decoder(self.autoencoder), decoder_places(self.autoencoder))

    def _check_autoencoder(self) -> None:
        recipe, network = self.recipe, self.autoencoder
        if isinstance(network, VideoAutoencoder) and not network.config.framewise:
            raise RecipeError(
                "autoencoder.path: found a 3D autoencoder, expected one of single frames (framewise = true): frames "
                "that were encoded together need no compensation"
            )
        if recipe.loss.consistency_weight and not isinstance(network, ImageAutoencoder):
            raise RecipeError(
                f"loss.consistency_weight: found {recipe.loss.consistency_weight} with an autoencoder of this trainer, "
                "expected 0: its encoder and decoder have no features of the same sizes"
            )
        _, (_, *factors) = latent_layout(network)
        for key, pixels in recipe.data.sides.items():
            if pixels % max(factors):
                raise RecipeError(f"data.{key}: found {pixels}, the autoencoder takes multiples of {max(factors)}")


def frame_decoder(autoencoder: FrozenAutoencoder) -> Callable[[Tensor], Tensor]:
    """Latents of single frames (N, Z, h, w) -> pixels (N, 3, H, W)."""
    if isinstance(autoencoder, VideoAutoencoder):
        return autoencoder.decode_frames
    return lambda z: autoencoder.network.decode(z).sample


def decoder_places(autoencoder: FrozenAutoencoder) -> list[nn.Module]:
    """The layers that give z_M to z_1."""
    if isinstance(autoencoder, VideoAutoencoder):
        return list(autoencoder.decoder.stages)
    return [block.resnets[-1] for block in autoencoder.network.decoder.up_blocks]


def encoder_places(autoencoder: ImageAutoencoder) -> list[nn.Module]:
    """The layers of Stable Diffusion's encoder before each down-sampling, level 1 first."""
    return [block.resnets[-1] for block in autoencoder.network.encoder.down_blocks]


def _width(place: nn.Module) -> int:
    """Channels of what a place gives."""
    last = place.residual2.conv2.conv if isinstance(place, nn.Sequential) else place.conv2  # type: ignore[union-attr]
    assert isinstance(last, nn.Conv2d | nn.Conv3d)
    return last.out_channels


def consistency(encoded: list[Tensor], decoded: list[Tensor]) -> Tensor:
    """Sum over levels of the mean squared distance of F_A (level 1 first) and F_S (level M first)."""
    pairs = zip(encoded, decoded[::-1], strict=True)
    return torch.stack([F.mse_loss(found.float(), wanted.float()) for wanted, found in pairs]).sum()


def _decibels(reconstruction: Tensor, video: Tensor) -> list[float]:
    """PSNR of frames, and of the differences of neighbours."""
    error = (reconstruction.clamp(-1, 1) - video) / 2
    return [float(-10 * part.square().mean().log10()) for part in (error, error.diff(dim=2))]


@contextmanager
def _noted(places: list[nn.Module], features: list[Tensor]) -> Iterator[None]:
    """Outputs of layers are added to a list while it is open."""
    hooks = [place.register_forward_hook(lambda place, inputs, out: features.append(out)) for place in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
