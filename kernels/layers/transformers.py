"""Transformers on videos, over the pixels of a frame or the frames of a pixel.

Shapes: B videos, T frames, P = H*W pixels, C channels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .attention import CrossAttention, FeedForward, SelfAttention
from .chunking import add_residual
from .embeddings import frame_positions
from .experts import ExpertFeedForward
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


class SpatialBlock(nn.Module):
    """Self-attention within frames, attention on the text, feed-forward, each pre-norm residual."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context_width: int,
        *,
        experts: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.spatial_norm = operations.LayerNorm(channels, **layer)
        self.spatial = SelfAttention(channels, heads, **build)
        self.text_norm = operations.LayerNorm(channels, **layer)
        self.text = CrossAttention(channels, context_width, heads, **build)
        self.feed_forward_norm = operations.LayerNorm(channels, **layer)
        self.feed_forward = feed_forward(channels, experts, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, P, C) -> same shape; overwritten unless gradients are recorded."""
        assert step.context is not None  # held by the network's `forward`
        _, pixels, channels = x.shape
        x = add_residual(x, lambda part: self.spatial(self.spatial_norm(part)), 0, 6 * pixels * channels)
        # All frames of a video are queries on its one text: keys and values are never repeated.
        text = self.text.keys_values(step.context)
        queries = x.view(-1, step.frames * pixels, channels)
        width = queries.shape[0] * 5 * channels
        x = add_residual(queries, lambda part: self.text(self.text_norm(part), text), 1, width).view_as(x)
        return _add_feed_forward(x, self.feed_forward_norm, self.feed_forward)


class TemporalBlock(nn.Module):
    """Self-attention over frames twice, feed-forward, each pre-norm residual; no text.

    With `positions`, where a frame is in the clip is added to what an attention sees, never to what it is added to.
    With `experts`, frames of a clip are dealt to so many feed-forward layers in training.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        positions: bool = False,
        experts: int = 1,
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
        self.feed_forward = feed_forward(channels, experts, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, P, C) -> same shape; overwritten unless gradients are recorded."""
        frames, channels = step.frames, x.shape[2]
        video = x.unflatten(0, (-1, frames))
        place = frame_positions(frames, channels, x)[:, None] if self.positions else 0.0
        width = frames * (6 * channels + self.attention1.heads * 2 * frames)
        video = add_residual(video, lambda part: self.attention1(self.norm1(part) + place), 2, width)
        video = add_residual(video, lambda part: self.attention2(self.norm2(part) + place), 2, width)
        return _add_feed_forward(video, self.feed_forward_norm, self.feed_forward).view_as(x)


class BlockChain(nn.Module):
    """Blocks of a transformer, one behind the other."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, P, C) -> same shape; overwritten unless gradients are recorded."""
        for block in self.blocks:
            x = block(x, step)
        return x


def feed_forward(
    channels: int,
    experts: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: type[TorchOperations] = TorchOperations,
) -> FeedForward | ExpertFeedForward:
    """One feed-forward layer, or several that are trained together to be one."""
    build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
    return FeedForward(channels, **build) if experts == 1 else ExpertFeedForward(channels, experts, **build)


def _add_feed_forward(x: Tensor, norm: nn.Module, layer: FeedForward | ExpertFeedForward) -> Tensor:
    """x + layer(norm(x)), x (B, L, ..., C), by tokens alone where they need not be told apart."""
    if isinstance(layer, ExpertFeedForward) and layer.deals:
        return x + layer(norm(x))
    rows, one = x.view(-1, x.shape[-1]), layer.as_one() if isinstance(layer, ExpertFeedForward) else layer
    return add_residual(rows, lambda part: one(norm(part)), 0, 14 * x.shape[-1]).view_as(x)
