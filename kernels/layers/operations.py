"""The operations that networks are built from: the one seam between a network and the program that runs it.

A program with its own weight handling (offloading, casting, low precision) passes a class with the same members.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TorchOperations:
    """Plain `torch.nn` layers and torch's attention."""

    Linear = nn.Linear
    Conv2d = nn.Conv2d
    Conv3d = nn.Conv3d
    ConvTranspose3d = nn.ConvTranspose3d
    GroupNorm = nn.GroupNorm
    LayerNorm = nn.LayerNorm
    Embedding = nn.Embedding

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Multi-head attention over tokens: query (B, N, D), key and value (B, M, D) -> (B, N, D)."""
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    @staticmethod
    def weights(
        module: nn.GroupNorm | nn.Conv2d | nn.Linear, like: Tensor
    ) -> AbstractContextManager[tuple[Tensor, Tensor]]:
        """Weight and bias of a layer, ready to be used together with the tensor `like` while the context is open."""
        return nullcontext((module.weight, module.bias))  # type: ignore[arg-type] # no bias is asked for without one


class LayerKeywords(TypedDict):
    """What every layer takes: how and where its weights are stored."""

    dtype: torch.dtype | None
    device: torch.device | str | None


class BuildKeywords(LayerKeywords):
    """What every part of a network takes."""

    operations: type[TorchOperations]


def norm_groups(channels: int, groups: int = 32) -> int:
    """Groups of a GroupNorm: those wanted, or as many of them as divide the channels."""
    return math.gcd(groups, channels)
