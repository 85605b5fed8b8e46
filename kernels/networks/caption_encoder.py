"""A small text encoder for models trained on a closed vocabulary, such as the embedded ones.

Shapes: B captions, N tokens, D width.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.attention import FeedForward, SelfAttention
from ..layers.operations import LayerKeywords, TorchOperations

START, END, UNKNOWN = "<start>", "<end>", "<unknown>"


@dataclass(frozen=True)
class CaptionEncoderConfig:
    """Numbers of a caption encoder.

    Attributes:
        vocabulary: words, and phrases of several words that are one token; the three special tokens come before them.
        width: width of the encoded tokens.
        layers, heads: of the transformer.
        max_tokens: length that every caption is padded or cut to.
    """

    vocabulary: tuple[str, ...]
    width: int = 128
    layers: int = 2
    heads: int = 4
    max_tokens: int = 32

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their numbers."""
        return (START, END, UNKNOWN, *self.vocabulary)


def words_of(text: str) -> list[str]:
    """Lower-case words of a caption, punctuation left out."""
    return re.findall(r"[a-z0-9]+", text.lower())


def terms_of(text: str, vocabulary: tuple[str, ...]) -> list[str]:
    """Words of a caption, joined by a space where they are a phrase of the vocabulary, the longest first."""
    phrases = {term for term in vocabulary if " " in term}
    longest = max((len(phrase.split()) for phrase in phrases), default=1)
    words, terms = words_of(text), []
    while words:
        candidates = (" ".join(words[:length]) for length in range(min(longest, len(words)), 1, -1))
        term = next((phrase for phrase in candidates if phrase in phrases), words[0])
        del words[: len(term.split())]
        terms.append(term)
    return terms


def tokenize(text: str, vocabulary: tuple[str, ...], max_tokens: int) -> list[int]:
    """Numbers of <start>, the terms, <end>, padded with <end>; what is not in the vocabulary is <unknown>."""
    number = {token: index for index, token in enumerate((START, END, UNKNOWN, *vocabulary))}
    words = [number.get(term, number[UNKNOWN]) for term in terms_of(text, vocabulary)][: max_tokens - 2]
    tokens = [number[START], *words]
    return tokens + [number[END]] * (max_tokens - len(tokens))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.attention_norm = operations.LayerNorm(width, **layer)
        self.attention = SelfAttention(width, heads, operations=operations, **layer)
        self.feed_forward_norm = operations.LayerNorm(width, **layer)
        self.feed_forward = FeedForward(width, operations=operations, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class CaptionEncoder(nn.Module):
    """Transformer encoder over word tokens."""

    def __init__(
        self,
        config: CaptionEncoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.config = config
        self.word_embedding = operations.Embedding(len(config.tokens), config.width, **layer)
        self.position_embedding = operations.Embedding(config.max_tokens, config.width, **layer)
        self.layers = nn.ModuleList(
            EncoderLayer(config.width, config.heads, operations=operations, **layer) for _ in range(config.layers)
        )
        self.norm = operations.LayerNorm(config.width, **layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N) integers -> (B, N, D)."""
        return self.encode(self.word_embedding(tokens))

    def encode(self, words: Tensor, layers: int | None = None) -> Tensor:
        """Embedded words (B, N, D) -> encoded tokens (B, N, D) after the first `layers` layers, or all.

        Raises:
            ValueError: more tokens than the encoder has positions.
        """
        count = words.shape[1]
        if count > self.config.max_tokens:
            raise ValueError(f"{count} tokens, the caption encoder takes {self.config.max_tokens}: shorten the text.")
        positions = torch.arange(count, device=words.device)
        x = words + self.position_embedding(positions).to(words.dtype)
        for layer in self.layers[:layers]:
            x = layer(x)
        return self.norm(x)
