"""Own captions preferred to others: of a clip, to one with another direction, or with two of them exchanged; of a
picture, to one with another shape or place.

Both are tried on the same noise, so that all that they have in common leaves the difference of their errors: what
remains says which word belongs to which object, and nothing else. In the error alone, that is a small part.

Shapes: B clips, K of them with such a caption, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.captions import COLUMNS, ROWS, SHAPES
from .text import TextEncoder

EXCHANGED = (SHAPES, ROWS, COLUMNS)
"""Words of pictures' captions; colours and backgrounds are learned without."""
LEAST_ERROR = 1e-3
"""Errors of clips count relative to their size, not below this one."""


class OtherCaptions(Protocol):
    """Captions that differ from those of a batch in what is to be learned."""

    def draw(self, tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) -> numbers (K,) of the first `most` that have other captions, tokens of one of these (K, N)."""
        ...


class OtherClips:
    """The captions of a Moving Shapes training set, and those that `others` makes of each, such as other directions."""

    def __init__(
        self, captions: list[str], tokens: Callable[[list[str]], Tensor], others: Callable[[str], list[str]]
    ) -> None:
        found = {caption: made for caption in captions if (made := others(caption))}
        rows = tokens(list(found)).tolist()
        self._others = {tuple(row): tokens(made) for row, made in zip(rows, found.values(), strict=True)}

    def draw(self, tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """See OtherCaptions."""
        numbers: list[int] = []
        drawn = [tokens[:0]]
        for number, row in enumerate(tokens.tolist()):
            others = self._others.get(tuple(row))
            if others is not None and len(numbers) < most:
                numbers.append(number)
                drawn.append(others[torch.randint(len(others), (1,))].to(tokens))
        return torch.tensor(numbers, dtype=torch.int64, device=tokens.device), torch.cat(drawn)


class OtherPictures:
    """Captions of pictures with another shape, row or column, or with those of two objects exchanged.

    Those of clips, which say how things move, have none: nothing that is held out is to be seen, not even as wrong.
    """

    def __init__(self, text: TextEncoder) -> None:
        words = [word for group in EXCHANGED for word in group]
        numbers = dict(zip([*words, "moves"], text.tokens([*words, "moves"])[:, 1], strict=True))
        self._moves = numbers["moves"]
        self._groups = [torch.stack([numbers[word] for word in group]) for group in EXCHANGED]

    def draw(self, tokens: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """See OtherCaptions."""
        numbers: list[int] = []
        drawn = [tokens[:0]]
        for number, row in enumerate(tokens.cpu()):
            if len(numbers) < most and not (row == self._moves).any():
                others = [other for group in self._groups for other in _with_another(row, group)]
                if others:
                    numbers.append(number)
                    drawn.append(others[int(torch.randint(len(others), (1,)))][None].to(tokens))
        return torch.tensor(numbers, dtype=torch.int64, device=tokens.device), torch.cat(drawn)


def _with_another(row: Tensor, group: Tensor) -> list[Tensor]:
    """Tokens (N,) with one word of a group (W,) in another's place, or with two different ones exchanged: at most one,
    drawn at random."""
    places = torch.isin(row, group).nonzero()[:, 0]
    other = row.clone()
    if len(places) == 1:
        left = group[group != row[places[0]]]
        other[places] = left[torch.randint(len(left), (1,))]
    elif len(places) == 2:
        other[places] = row[places.flip(0)]
    return [] if torch.equal(other, row) else [other]


def preference_loss(own: Tensor, other: Tensor) -> Tensor:
    """Logistic loss of how much larger the other caption's errors (K,) are than the own one's (K,), relative to these.

    As preferences among samples are learned, with the errors in place of likelihoods (DPO, eq. 7; Diffusion-DPO).
    """
    return F.softplus((own - other) / own.detach().clamp(min=LEAST_ERROR)).mean()
