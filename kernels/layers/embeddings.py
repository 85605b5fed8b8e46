"""Embeddings of numbers, such as the diffusion time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.group_norm import ACTIVATIONS, Activation
from .operations import TorchOperations


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, cosines first: timesteps (B,) -> (B, width) in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


def frame_positions(frames: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of the number of a frame, sine and cosine in turn: (frames, width) as `like`.

    Computed in float32, as the tables in released files were, and where it is used: a copy to a GPU would wait for it.
    """
    places = torch.arange(frames, dtype=torch.float32, device=like.device)
    rates = torch.arange(0, width, 2, dtype=torch.float32, device=like.device)
    frequencies = torch.exp(rates * (-math.log(10000.0) / width))
    angles = places[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(like)


class Perceptron(nn.Module):
    """Two linear layers with an activation between: features (..., D) -> (..., E)."""

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        activation: Activation = "silu",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.hidden = operations.Linear(in_width, out_width, dtype=dtype, device=device)
        self.out = operations.Linear(out_width, out_width, dtype=dtype, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., D) -> (..., E)."""
        return self.out(self.activation(self.hidden(features)))
