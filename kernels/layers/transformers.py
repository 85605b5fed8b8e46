"""Transformers on videos, over the pixels of a frame or the frames of a pixel.

Shapes: B videos, T frames, P = H*W pixels, C channels.
"""

import torch
from torch import Tensor, nn

from .attention import FeedForward
from .chunking import add_residual
from .embeddings import frame_positions
from .operations import BuildKeywords, LayerKeywords, TorchOperations
from .resnet import ClipNorm, Step
from .temporal import TemporalAttention


class Transformer(nn.Module):
    """GroupNorm over frames or clips, projection, one block, projection, residual."""

    def __init__(
        self,
        channels: int,
        inner: int,
        block: nn.Module,
        *,
        clip_norm: bool,
        groups: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.clip_norm = clip_norm
        self.norm = ClipNorm(channels, groups=groups, eps=1e-6, operations=operations, **layer)
        self.project_in = operations.Linear(channels, inner, **layer)
        self.block = block
        self.project_out = operations.Linear(inner, channels, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        normal = self.norm(x, step.frames if self.clip_norm else 1)
        tokens = self.block(self.project_in(normal.permute(0, 2, 3, 1).flatten(1, 2)), step)
        tokens = self.project_out(tokens)
        return x + tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class TemporalBlock(nn.Module):
    """Self-attention over frames twice, feed-forward, each pre-norm residual; no text.

    With `positions`, where a frame is in the clip is added to what an attention sees, never to what it is added to.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        positions: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.positions = positions
        self.norm1 = operations.LayerNorm(channels, **layer)
        self.attention1 = TemporalAttention(channels, heads, max_distance=None, **build)
        self.norm2 = operations.LayerNorm(channels, **layer)
        self.attention2 = TemporalAttention(channels, heads, max_distance=None, **build)
        self.feed_forward_norm = operations.LayerNorm(channels, **layer)
        self.feed_forward = FeedForward(channels, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, P, C) -> same shape; overwritten unless gradients are recorded."""
        frames, channels = step.frames, x.shape[2]
        video = x.unflatten(0, (-1, frames))
        place = frame_positions(frames, channels, x)[:, None] if self.positions else 0.0
        width = frames * (6 * channels + self.attention1.heads * 2 * frames)
        video = add_residual(video, lambda part: self.attention1(self.norm1(part) + place), 2, width)
        video = add_residual(video, lambda part: self.attention2(self.norm2(part) + place), 2, width)
        rows = video.view(-1, channels)
        rows = add_residual(rows, lambda part: self.feed_forward(self.feed_forward_norm(part)), 0, 14 * channels)
        return rows.view_as(x)
