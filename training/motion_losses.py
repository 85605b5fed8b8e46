"""Losses of HARIVO's training beside that of the noise (Section 3.4).

Shapes: B videos, F frames, N tokens, C channels, H, W latent size, P pairs of frames, Q features in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1


def attention_change(maps: Tensor) -> Tensor:
    """How much the spatial attention of a layer changes from frame to frame, a scalar.

    Args:
        maps: softmaxed self-attention (B, F, heads, N, N).
    """
    return maps.diff(dim=1).abs().mean(dim=(0, 2, 3, 4)).sum()


def temporal_regularized_self_attention(changes: Sequence[Tensor]) -> Tensor:
    """How much spatial attention changes from frame to frame (L_TRS), a scalar.

    Args:
        changes: those of the decoder's layers, the deepest first; of N layers the i-th has weight i/N.
    """
    together = torch.stack(list(changes))
    return (together * torch.arange(1, len(changes) + 1).to(together) / len(changes)).sum()


def image_regularization(video: Tensor, image: Tensor, timesteps: Tensor, steps: int) -> Tensor:
    """Distance to what the image model alone predicts (L_reg), less at noisier times: a scalar.

    Args:
        video, image: predictions (B, C, F, H, W), or with other axes behind the first; gradients go into both.
        timesteps: (B,), of `steps`.
    """
    distance = (video - image).square().flatten(1).mean(dim=1)
    return ((1.0 - timesteps.to(distance) / steps) * distance).mean()


def decoupled_contrastive(
    anchors: Tensor, positives: Tensor, queue: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Frames of one video are alike, those of others are not (L_DC): a scalar.

    The sum over negatives leaves the positive pair out (Yeh et al. 2022).

    Args:
        anchors, positives: features of two frames of the same videos, (P, C) each, of any length.
        queue: features of other videos, (Q, C), of length one; they get no gradient.
    """
    first, second = F.normalize(anchors, dim=1), F.normalize(positives, dim=1)
    attraction = (first * second).sum(dim=1) / temperature
    repulsion = (first @ queue.detach().T / temperature).logsumexp(dim=1)
    return (repulsion - attraction).mean()


class ContrastiveProjection(nn.Module):
    """From the deepest feature map of a frame to the features that are compared; dropped after training."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, bias=False)
        self.layers = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))

    def forward(self, deepest: Tensor) -> Tensor:
        """Feature maps (P, C, size, size) -> (P, C)."""
        features = self.conv(deepest).flatten(1)
        for layer in self.layers:
            features = layer(F.silu(features))
        return features


class FeatureQueue(nn.Module):
    """The newest features of earlier steps, the negatives of the contrastive loss: buffers, so that a run resumes."""

    features: Tensor
    filled: Tensor

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(length, channels))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def add(self, features: Tensor) -> None:
        """Put features (P, C) in, normalised and without gradient; the oldest leave."""
        new = F.normalize(features.detach().float(), dim=1)[-len(self.features) :]
        self.features.copy_(torch.cat([self.features[len(new) :], new]))
        self.filled.add_(len(new)).clamp_(max=len(self.features))

    def newest(self) -> Tensor:
        """A copy of what it holds, (Q, C)."""
        return self.features[len(self.features) - int(self.filled) :].clone()
