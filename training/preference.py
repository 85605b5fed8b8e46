"""Which object goes which way: a clip's caption is preferred to the same one with its objects' directions exchanged.

Both are tried on the same noise, so that all that the two have in common leaves the difference of their errors: what
remains says which word belongs to which object, and nothing else. Without it, that is a small part of the error.

Shapes: B clips, K of them with such a caption, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.captions import with_directions_exchanged
from .settings import RecipeError
from .text import TextEncoder

LEAST_ERROR = 1e-3
"""Errors of clips count relative to their size, not below this one."""


class ExchangedCaptions:
    """The captions of two objects in a training set, with the directions of the two exchanged.

    Raises:
        RecipeError: no caption has two objects with different directions.
    """

    def __init__(self, captions: list[str], text: TextEncoder) -> None:
        exchanged = {caption: with_directions_exchanged(caption) for caption in captions}
        found = {caption: other for caption, other in exchanged.items() if other}
        if not found:
            raise RecipeError(
                "diffusion.caption_preference: no caption has two objects with different directions; "
                "expected data of Moving Shapes with two_objects above 0"
            )
        rows = text.tokens(list(found)).tolist()
        self._others = dict(zip(map(tuple, rows), text.tokens(list(found.values())), strict=True))

    def of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) -> numbers (K,) of those that have another caption, and its tokens (K, N)."""
        others = [self._others.get(tuple(row)) for row in tokens.tolist()]
        numbers = [number for number, other in enumerate(others) if other is not None]
        found = [other for other in others if other is not None]
        rows = torch.stack(found).to(tokens) if found else tokens[:0]
        return torch.tensor(numbers, dtype=torch.int64, device=tokens.device), rows


def preference_loss(own: Tensor, other: Tensor) -> Tensor:
    """Logistic loss of how much larger the other caption's errors (K,) are than the own one's (K,), relative to these.

    As preferences among samples are learned, with the errors in place of likelihoods (DPO, eq. 7; Diffusion-DPO).
    """
    return F.softplus((own - other) / own.detach().clamp(min=LEAST_ERROR)).mean()
