"""Training the 3D autoencoder: reconstruction, perceptual, KL and adversarial losses.

Shapes: B clips, T frames, H height, W width, Z latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.networks.video_autoencoder import VideoAutoencoder
from .config import AutoencoderRecipe
from .data.clips import open_clips, stack_readable, stack_videos, streams_of, to_pixels
from .data.crops import crop_to_foreground
from .discriminator import PatchDiscriminator
from .distributed import noise_like
from .losses import GradientLoss, PerceptualLoss, adaptive_weight, hinge_loss, kl_divergence, to_frames
from .resampling import initialize_as_resampling
from .settings import Table
from .task import Batch, Losses, RareClips


class AutoencoderTask:
    """The losses of the released autoencoders, with their weights in the recipe."""

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.clips, self.held_out = open_clips(recipe.data, "train"), open_clips(recipe.data, "held_out")
        self.clip_count, self.streams = len(self.clips), streams_of(self.clips)
        self.rare_clips: RareClips | None = None
        self.autoencoder = VideoAutoencoder(recipe.network).to(device)
        if recipe.initialization == "resampling":
            initialize_as_resampling(self.autoencoder)
        self.discriminator = PatchDiscriminator(recipe.loss.discriminator_channels).to(device)
        self.perceptual = (PerceptualLoss() if recipe.loss.perceptual == "lpips" else GradientLoss()).to(device)
        self.networks: dict[str, nn.Module] = {"vae": self.autoencoder}
        self.companions: dict[str, nn.Module] = {"discriminator": self.discriminator}
        self.facts: Table = {}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer for the autoencoder, one for the discriminator."""
        return {
            "autoencoder": list(self.autoencoder.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Clips (B, T, H, W, 3) uint8."""
        return (stack_readable(self.clips, indices.tolist(), epochs.tolist())[0],)

    def losses(self, batch: Batch, step: int) -> Losses:
        """The autoencoder's loss, and from its first step on the discriminator's."""
        settings = self.recipe.loss
        video = to_pixels(batch[0])
        if step < self.recipe.crops.steps:
            video = crop_to_foreground(video, self.recipe.crops.size)
        mean, logvar = self.autoencoder.moments(video)
        latent = mean + (0.5 * logvar).exp() * noise_like(mean)
        reconstruction = self.autoencoder.decode(latent).float()
        real, fake = to_frames(video), to_frames(reconstruction)
        difference = (real - fake).abs()
        pixels = difference if settings.reconstruction == "l1" else difference.square()
        perceptual = self.perceptual(real, fake)
        nll = (pixels + settings.perceptual_weight * perceptual).sum() / len(real)
        divergence = kl_divergence(mean.float(), logvar.float())
        total = nll + settings.kl_weight * divergence
        metrics = {"l1": difference.mean(), "perceptual": perceptual.mean(), "kl": divergence}
        objectives = {}
        if step >= settings.discriminator_start:
            adversarial = -self.discriminator(fake).float().mean()
            last_weight = self.autoencoder.decoder.conv_out.conv.weight
            weight = settings.adversarial_weight * adaptive_weight(nll, adversarial, last_weight)
            total = total + weight * adversarial
            objectives["discriminator"] = hinge_loss(
                self.discriminator(real).float(), self.discriminator(fake.detach()).float()
            )
            metrics |= {
                "adversarial": adversarial,
                "adversarial_weight": weight,
                "discriminator": objectives["discriminator"],
            }
        objectives["autoencoder"] = total
        return Losses(objectives, {"loss": total, **metrics})

    def before_step(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Mean absolute error and PSNR (dB, frames in 0..1) of held-out clips through the posterior's mean."""
        network = networks["vae"]
        assert isinstance(network, VideoAutoencoder)
        absolute, decibels = [], []
        for index in range(min(self.recipe.run.validation_clips, len(self.held_out))):
            video = to_pixels(stack_videos(self.held_out, [index])[0].to(self.device))
            error = network.decode(network.encode(video)).clamp(-1, 1) - video
            absolute.append(error.abs().mean())
            decibels.append(-10 * (error / 2).square().mean().log10())
        if not absolute:
            return {}
        return {"l1": float(torch.stack(absolute).mean()), "psnr": float(torch.stack(decibels).mean())}
