"""VersVideo's style adapter (section 3.4): a linear layer that makes text tokens of an image's CLIP embedding.

Shapes: B images, E embedding width, S style tokens, N text tokens, D their width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.operations import TorchOperations


@dataclass(frozen=True)
class StyleAdapterConfig:
    """Numbers of the adapter; the defaults are for ViT-L/14's projected embedding and Stable Diffusion's text.

    Attributes:
        embedding_width: of the images' embeddings.
        width: of the text tokens.
        tokens: that an image becomes.
    """

    embedding_width: int = 768
    width: int = 768
    tokens: int = 4


class StyleAdapter(nn.Module):
    """Embeddings to tokens, for cross-attentions of denoiser and ControlNet alike."""

    def __init__(
        self,
        config: StyleAdapterConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        self.config = config
        outputs = config.width * config.tokens
        self.project = operations.Linear(config.embedding_width, outputs, dtype=dtype, device=device)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, E); zeros stand for no image -> tokens (B, S, D)."""
        return self.project(embedding).unflatten(1, (self.config.tokens, self.config.width))

    def append(self, text: Tensor, embedding: Tensor) -> Tensor:
        """Text (B, N, D) with the tokens of images, (B or 1, E), behind it: (B, N + S, D).

        Raises:
            ValueError: text or embeddings of another width.
        """
        config = self.config
        for what, found, expected in (
            ("The text", text.shape[-1], config.width),
            ("The image's embedding", embedding.shape[-1], config.embedding_width),
        ):
            if found != expected:
                raise ValueError(f"{what} has width {found}, the style adapter expects {expected}.")
        tokens = self(embedding.to(self.project.weight)).to(text)
        return torch.cat([text, tokens.expand(len(text), -1, -1)], dim=1)
