"""Layers along time. Shapes: B videos, T frames, P pixels, C channels, M largest distance in the position tables."""

import torch
from torch import Tensor, nn

from ..fused.temporal_attention import temporal_attention
from .operations import LayerKeywords, TorchOperations, norm_groups
from .resnet import ClipNorm


class RelativePositions(nn.Module):
    """A learned vector per distance between two frames, clipped at M (LVDM section 3.2; Shaw et al. 2018).

    The table has 2M+1 rows; row M is distance zero.
    """

    def __init__(
        self,
        max_distance: int,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.table = operations.Embedding(2 * max_distance + 1, width, dtype=dtype, device=device)

    def forward(self, frames: int, like: Tensor, reverse: bool = False) -> Tensor:
        """Vectors (T, T, width): entry [i, j] is the row of distance j - i, or of i - j when reversed."""
        position = torch.arange(frames, device=like.device)
        distance = position[None, :] - position[:, None]
        rows = (-distance if reverse else distance).clamp(-self.max_distance, self.max_distance)
        return self.table(rows + self.max_distance).to(like.dtype)


class TemporalAttention(nn.Module):
    """Self-attention over the frames of each pixel, with optional relative positions.

    `transposed_keys` is the form of LVDM's models on the 3D autoencoder: the position term of the logits uses the
    query vector of the key's frame and the opposite distance.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        max_distance: int | None,
        qkv_bias: bool = False,
        transposed_keys: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.heads, self.transposed_keys = heads, transposed_keys
        self.qkv = operations.Linear(channels, 3 * channels, bias=qkv_bias, **layer)
        self.out = operations.Linear(channels, channels, **layer)
        self.positions = max_distance is not None
        if max_distance is not None:
            width = channels // heads
            self.key_positions = RelativePositions(max_distance, width, operations=operations, **layer)
            self.value_positions = RelativePositions(max_distance, width, operations=operations, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, P, C) -> (B, T, P, C)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        tables = {}
        if self.positions:
            tables = {
                "key_positions": self.key_positions(x.shape[1], query, reverse=self.transposed_keys),
                "value_positions": self.value_positions(x.shape[1], query),
            }
        out = temporal_attention(query, key, value, self.heads, transposed=self.transposed_keys, **tables)
        return self.out(out)


class TemporalConvolution(nn.Module):
    """Four residual convolutions over three frames, each behind GroupNorm over the clip and SiLU (ModelScope, HiGen).

    On the channels-last memory of a video they are two-dimensional convolutions over T x P with kernel (3, 1).
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.norms = nn.ModuleList(
            ClipNorm(channels, groups=groups, activation="silu", operations=operations, **layer) for _ in range(4)
        )
        self.convs = nn.ModuleList(
            operations.Conv2d(channels, channels, (3, 1), padding=(1, 0), **layer) for _ in range(4)
        )

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            clip = norm(h, frames).permute(0, 2, 3, 1).unflatten(0, (-1, frames)).flatten(2, 3)
            clip = conv(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            h = clip.reshape(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        return x + h


class PixelNorm(nn.Module):
    """GroupNorm over the frames of each pixel by itself."""

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.norm = operations.GroupNorm(norm_groups(channels, groups), channels, eps=1e-5, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, P, C) -> same shape, statistics over T and the channels of a group."""
        grouped = x.unflatten(-1, (self.norm.num_groups, -1)).float()
        variance, mean = torch.var_mean(grouped, dim=(1, 4), keepdim=True, correction=0)
        normal = (grouped - mean) * (variance + self.norm.eps).rsqrt()
        with self.operations.weights(self.norm, x) as (weight, bias):
            return normal.flatten(-2).to(x.dtype) * weight + bias
