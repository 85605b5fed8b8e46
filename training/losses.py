"""Losses of the autoencoder.

Shapes: N frames, B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import mean_of_all

VGG_FILE = "vgg16-397923af.pth"


class GradientLoss(nn.Module):
    """Mean absolute difference of horizontal and vertical image gradients, averaged over scales halved each time
    (as many as leave two pixels).

    It stands where a perceptual network would and needs no weights: edges count at every scale, flat areas do not.
    """

    def __init__(self, scales: int = 4) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Frames (N, 3, H, W) twice -> (N, 1, 1, 1)."""
        difference, total = x - y, x.new_zeros(len(x))
        scales = min(self.scales, min(x.shape[-2:]).bit_length() - 1)
        for scale in range(scales):
            if scale:
                difference = F.avg_pool2d(difference, 2)
            total = total + difference.diff(dim=-1).abs().mean(dim=(1, 2, 3))
            total = total + difference.diff(dim=-2).abs().mean(dim=(1, 2, 3))
        return (total / scales).view(-1, 1, 1, 1)


class PerceptualLoss(nn.Module):
    """LPIPS with VGG16 features, built only where the backbone's weights already lie on disk."""

    def __init__(self) -> None:
        super().__init__()
        file = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: LPIPS needs torchvision's VGG16 weights there; put the file in place, "
                'or set loss.perceptual = "gradients"'
            )
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.network = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in -1..1 twice -> (N, 1, 1, 1)."""
        distance: Tensor = self.network(x, y)
        return distance.view(-1, 1, 1, 1)


def to_frames(video: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) -> frames (B*T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of the posterior from a standard normal: summed over a clip, averaged over clips (scalar)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / len(mean)


def adaptive_weight(nll: Tensor, generator_loss: Tensor, last_weight: Tensor) -> Tensor:
    """clamp(|grad nll| / (|grad g| + 1e-4), 0, 1e4), gradients at the decoder's last convolution weight (scalar)."""
    (of_nll,) = map(mean_of_all, torch.autograd.grad(nll, last_weight, retain_graph=True))
    (of_generator,) = map(mean_of_all, torch.autograd.grad(generator_loss, last_weight, retain_graph=True))
    return (of_nll.norm() / (of_generator.norm() + 1e-4)).clamp(0, 1e4).detach()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its outputs for real and generated frames (scalar)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
