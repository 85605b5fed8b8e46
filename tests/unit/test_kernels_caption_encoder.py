"""The caption encoder and its words."""

import pytest
import torch

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig, terms_of, tokenize, words_of

CONFIG = CaptionEncoderConfig(vocabulary=("a", "red", "circle", "moves"), width=16, layers=2, heads=2, max_tokens=8)
START, END, UNKNOWN = 0, 1, 2


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return CaptionEncoder(CONFIG)


def test_words():
    assert words_of("A red circle, moves: LEFT-to-right 2x!") == [
        "a",
        "red",
        "circle",
        "moves",
        "left",
        "to",
        "right",
        "2x",
    ]
    assert words_of(" ...") == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a red circle", [START, 3, 4, 5, END, END, END, END]),
        ("A RED, Circle!", [START, 3, 4, 5, END, END, END, END]),
        ("a green circle", [START, 3, UNKNOWN, 5, END, END, END, END]),
        ("", [START, END, END, END, END, END, END, END]),
        ("a a a a a a red circle", [START, 3, 3, 3, 3, 3, 3, END]),
        ("<start> <end>", [START, UNKNOWN, UNKNOWN, END, END, END, END, END]),
    ],
)
def test_tokens(text, numbers):
    """Lower case, unknown words, padding, and cutting that keeps the end token."""
    assert tokenize(text, CONFIG.vocabulary, 8) == numbers
    assert all(0 <= number < len(CONFIG.tokens) for number in numbers)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("moves Left-to-right, slowly", ["moves", "left to right", "slowly"]),
        ("left to left to right to left", ["left", "to", "left to right", "to", "left"]),
        ("to right", ["to right"]),
        ("left to", ["left", "to"]),
        ("", []),
    ],
)
def test_a_phrase_of_the_vocabulary_is_one_token(text, terms):
    """The longest phrase wins, wherever it begins; what is left over are words."""
    vocabulary = ("left to right", "to right", "moves")
    assert terms_of(text, vocabulary) == terms
    numbers = {START + 3 + index: term for index, term in enumerate(vocabulary)}
    known = [numbers.get(number) for number in tokenize(text, vocabulary, 16)[1 : len(terms) + 1]]
    assert known == [term if term in vocabulary else None for term in terms]


def test_tokens_are_numbered_in_order():
    assert CONFIG.tokens == ("<start>", "<end>", "<unknown>", "a", "red", "circle", "moves")


@torch.no_grad()
def test_encoding(encoder):
    texts = ["a red circle moves", "red", ""]
    tokens = torch.tensor([tokenize(text, CONFIG.vocabulary, CONFIG.max_tokens) for text in texts])
    encoded = encoder(tokens)
    assert encoded.shape == (3, 8, 16)
    # The last step is a norm that was not trained: mean 0 and variance 1 of every token.
    torch.testing.assert_close(encoded.mean(-1), torch.zeros(3, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoded.var(-1, correction=0), torch.ones(3, 8), rtol=0, atol=1e-3)
    # Captions are independent, and embedded words are what the tokens stand for.
    alone = torch.cat([encoder(row[None]) for row in tokens])
    torch.testing.assert_close(alone, encoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.encode(encoder.word_embedding(tokens)), encoded, rtol=0, atol=0)


@torch.no_grad()
def test_order_of_words_matters(encoder):
    one, other = (torch.tensor([tokenize(text, CONFIG.vocabulary, 8)]) for text in ("a red circle", "circle red a"))
    assert (encoder(one)[:, 0] - encoder(other)[:, 0]).abs().max() > 1e-3


def test_too_many_tokens_are_refused(encoder):
    with pytest.raises(ValueError, match="9 tokens, the caption encoder takes 8: shorten the text"):
        encoder(torch.zeros(1, 9, dtype=torch.int64))
