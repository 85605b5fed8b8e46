"""Words for places in the captions of frames, as frame tokens may stand for them.

Shapes: R captions, N tokens, K frame tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.networks.caption_encoder import CaptionEncoderConfig
from .data.captions import COLUMNS, PLACE_WORDS, ROWS

WORDS_OF_AN_OBJECT = 3
""""at the", row and column."""


class PlaceWords:
    """Gives every word for a place its frame token: three for each object, in the order of the caption."""

    def __init__(self, text: CaptionEncoderConfig, per_frame: int) -> None:
        self.per_frame = per_frame
        self.kinds = torch.full((len(text.tokens),), -1)
        for kind, words in enumerate(((PLACE_WORDS[0],), ROWS, COLUMNS)):
            self.kinds[[text.tokens.index(word) for word in words]] = kind
        self.between = text.tokens.index("and")

    def __call__(self, tokens: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (R, N) and their encodings (R, N, D) -> encoded words (R, K, D), and which of them count (R, K).

        A word that a caption leaves open does not count. Tokens of a second object, where there is none, are the
        caption's last one, which is padding.
        """
        second = (tokens == self.between).cumsum(dim=1)
        kinds = self.kinds.to(tokens.device)[tokens]
        slots = torch.where(kinds >= 0, kinds + WORDS_OF_AN_OBJECT * second, -1)
        words = encoded[:, -1:].repeat(1, self.per_frame, 1)
        objects = torch.arange(self.per_frame, device=tokens.device) // WORDS_OF_AN_OBJECT
        count = objects > second[:, -1:]
        rows, places = ((slots >= 0) & (slots < self.per_frame)).nonzero(as_tuple=True)
        words[rows, slots[rows, places]] = encoded[rows, places]
        count[rows, slots[rows, places]] = True
        return words, count
