"""Embeddings of the diffusion time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operations import TorchOperations


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, cosines first: timesteps (B,) -> (B, width) in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


class TimeEmbedding(nn.Module):
    """Sinusoid and a two-layer perceptron: timesteps (B,) -> (B, 4 * channels)."""

    def __init__(
        self,
        channels: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = operations.Linear(channels, 4 * channels, dtype=dtype, device=device)
        self.out = operations.Linear(4 * channels, 4 * channels, dtype=dtype, device=device)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Timesteps (B,) -> embedding (B, 4 * channels) in `dtype`."""
        return self.out(F.silu(self.hidden(sinusoid(timesteps, self.channels).to(dtype))))
