"""Attention within frames and feed-forward layers. Shapes: B batch, N tokens, C channels, D context width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operations import LayerKeywords, TorchOperations


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        qkv_bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.heads, self.operations = heads, operations
        self.qkv = operations.Linear(channels, 3 * channels, bias=qkv_bias, dtype=dtype, device=device)
        self.out = operations.Linear(channels, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.out(self.operations.attention(query, key, value, self.heads))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens on a context; key and value share one projection."""

    def __init__(
        self,
        channels: int,
        context_width: int,
        heads: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.heads, self.operations = heads, operations
        self.query = operations.Linear(channels, channels, bias=False, **layer)
        self.key_value = operations.Linear(context_width, 2 * channels, bias=False, **layer)
        self.out = operations.Linear(channels, channels, **layer)

    def forward(self, x: Tensor, key_value: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, N, C), the result of `keys_values` -> (B, N, C)."""
        return self.out(self.operations.attention(self.query(x), *key_value, self.heads))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context (B, M, D) -> keys and values (B, M, C) each."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return key, value


class FeedForward(nn.Module):
    """GEGLU feed-forward of four times the width: Linear(a * gelu(b)), exact GELU."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.inner = operations.Linear(channels, 8 * channels, dtype=dtype, device=device)
        self.out = operations.Linear(4 * channels, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)."""
        value, gate = self.inner(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))
