"""VersVideo's style on CONDITIONING: tokens of an image behind those of the text."""

import torch
from torch import Tensor

from ...kernels.networks.style_adapter import StyleAdapter
from ..checkpoint import read
from ..errors import CheckpointError
from ..unified_control import STYLE

Conditioning = list[tuple[Tensor, dict[str, object]]]


def load_style(path: str) -> StyleAdapter:
    """The adapter of a file.

    Raises:
        CheckpointError: it holds none, or does not fit.
    """
    checkpoint = read(path)
    if STYLE not in checkpoint.components:
        raise CheckpointError(f"{checkpoint.name} has no style adapter (style_adapter.weight and .bias).")
    network = checkpoint.component(STYLE).build(dtype=torch.float32)
    assert isinstance(network, StyleAdapter)
    return network.eval().requires_grad_(False)


def with_style(adapter: StyleAdapter, conditioning: Conditioning, embedding: Tensor | None) -> list[list[object]]:
    """Conditioning with the style of an image, or with that of none: the embedding is zero then.

    Raises:
        ValueError: several images, or widths that do not fit.
    """
    if embedding is None:
        embedding = torch.zeros(1, adapter.config.embedding_width)
    if len(embedding) != 1:
        raise ValueError(f"Found the embeddings of {len(embedding)} images, expected one: choose an image.")
    return [[adapter.append(text, embedding.to("cpu")), dict(options)] for text, options in conditioning]
