"""Training the network of the Frechet distance: what does a clip show?

Shapes: B clips, T frames, H, W pixels, L labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from ..model_loaders.bundle import FEATURES
from .config import FeaturesRecipe
from .data.captions import parse_caption
from .data.clips import Clips, open_clips, stack_videos, to_pixels
from .data.labels import LABELS, SOFT, accuracy, labels_of
from .settings import Table
from .task import Batch, Losses, RareClips

BATCH = 32
"""Clips that are validated together."""
SOFT_ONE_IN = 4
"""Clips are softened in turn, each in another epoch: what is never asked for is not in features."""


class FeaturesTask:
    """Binary cross-entropy of labels, each for itself."""

    def __init__(self, recipe: FeaturesRecipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.clips, self.held_out = open_clips(recipe.data, "train"), open_clips(recipe.data, "held_out")
        self.clip_count = len(self.clips)
        self.rare_clips: RareClips | None = None
        config = VideoFeaturesConfig(recipe.channels, LABELS, recipe.data.frames, recipe.data.size)
        self.network = VideoFeatures(config).to(device)
        for module in self.network.modules():
            if isinstance(module, nn.Conv3d):
                # Nothing is normalized: values keep their size from layer to layer (He et al., arXiv 1502.01852).
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.networks: dict[str, nn.Module] = {FEATURES: self.network}
        self.companions: dict[str, nn.Module] = {}
        self.facts: Table = {}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer."""
        return {FEATURES: list(self.network.parameters())}

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Clips (B, T, H, W, 3) uint8 and their labels (B, L)."""
        return _load(self.clips, indices, epochs)

    def losses(self, batch: Batch, step: int) -> Losses:
        """Cross-entropy, summed over labels."""
        videos, labels = batch
        logits = self.network(to_pixels(videos)).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)
        return Losses({FEATURES: loss}, {"loss": loss})

    def before_step(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Share of held-out clips of which the network says all right, by group of labels."""
        count = min(self.recipe.run.validation_clips, len(self.held_out))
        if not count:
            return {}
        logits, labels = [], []
        for start in range(0, count, BATCH):
            indices = torch.arange(start, min(start + BATCH, count))
            videos, shown = _load(self.held_out, indices, torch.zeros_like(indices))
            logits.append(networks[FEATURES](to_pixels(videos.to(self.device))).cpu())
            labels.append(shown)
        return accuracy(torch.cat(logits), torch.cat(labels))


def soften(videos: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, uint8 (B, T, H, W, 3)."""
    frames = videos.flatten(0, 1).movedim(-1, 1).float()
    means = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return means.round().to(torch.uint8).movedim(1, -1).unflatten(0, videos.shape[:2])


def _load(clips: Clips, indices: Tensor, epochs: Tensor) -> tuple[Tensor, Tensor]:
    videos, captions = stack_videos(clips, indices.tolist(), epochs.tolist())
    labels = torch.stack([labels_of(parse_caption(text)) for text in captions])
    soft = (indices + epochs) % SOFT_ONE_IN == 0
    if soft.any():
        videos[soft] = soften(videos[soft])
        labels[soft, SOFT] = 1
    return videos, labels
