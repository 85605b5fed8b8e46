"""What goes which way: a clip's caption is preferred to one with another direction, or with two of them exchanged.

Both are tried on the same noise, so that all that they have in common leaves the difference of their errors: what
remains says which word belongs to which object, and nothing else. In the error alone, that is a small part.

Shapes: B clips, K of them with such a caption, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.captions import with_other_directions
from .text import TextEncoder

LEAST_ERROR = 1e-3
"""Errors of clips count relative to their size, not below this one."""


class OtherDirections:
    """The captions of a Moving Shapes training set, and those that differ from them in directions only."""

    def __init__(self, captions: list[str], text: TextEncoder) -> None:
        found = {caption: others for caption in captions if (others := with_other_directions(caption))}
        rows = text.tokens(list(found)).tolist()
        self._others = {tuple(row): text.tokens(others) for row, others in zip(rows, found.values(), strict=True)}

    def draw(self, tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) -> numbers (K,) of the first `most` that have other captions, tokens of one of these (K, N)."""
        numbers: list[int] = []
        drawn = [tokens[:0]]
        for number, row in enumerate(tokens.tolist()):
            others = self._others.get(tuple(row))
            if others is not None and len(numbers) < most:
                numbers.append(number)
                drawn.append(others[torch.randint(len(others), (1,))].to(tokens))
        return torch.tensor(numbers, dtype=torch.int64, device=tokens.device), torch.cat(drawn)


def preference_loss(own: Tensor, other: Tensor) -> Tensor:
    """Logistic loss of how much larger the other caption's errors (K,) are than the own one's (K,), relative to these.

    As preferences among samples are learned, with the errors in place of likelihoods (DPO, eq. 7; Diffusion-DPO).
    """
    return F.softplus((own - other) / own.detach().clamp(min=LEAST_ERROR)).mean()
