"""The layers that trained networks are built from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.layers.operations import TorchOperations


class TrainingOperations(TorchOperations):
    """torch.nn; on a CPU, attention in float32 even under autocast: its bfloat16 backward is ten times slower."""

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Multi-head attention over tokens: query (B, N, D), key and value (B, M, D) -> (B, N, D)."""
        if query.device.type != "cpu":
            return TorchOperations.attention(query, key, value, heads)
        with torch.autocast("cpu", enabled=False):
            return TorchOperations.attention(query.float(), key.float(), value.float(), heads).to(query.dtype)
