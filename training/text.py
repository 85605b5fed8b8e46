"""Text encoders of the text-to-video task.

Shapes: B captions, N tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig, terms_of, tokenize, words_of
from ..model_loaders.checkpoint import TEXT_ENCODER
from .data.captions import PLACE_WORDS, caption_terms
from .latents import hash_of
from .opened import open_networks
from .operations import TrainingOperations
from .sections import Data, MovingShapesData
from .settings import RecipeError
from .text_settings import CaptionText, ClipText, GivenText, T5Text


class TextEncoder(Protocol):
    """A network from tokens (B, N) to their encodings (B, N, D), and its tokens."""

    network: nn.Module
    saved: bool
    """Whether it is one of the networks of a run, and so of its files."""
    width: int

    def tokens(self, captions: list[str]) -> Tensor:
        """Token numbers (B, N)."""
        ...


class NoText:
    """For networks that read none."""

    saved, width = False, 0

    def __init__(self) -> None:
        self.network: nn.Module = nn.Identity()

    def tokens(self, captions: list[str]) -> Tensor:
        """A zero for each, (B, 1)."""
        return torch.zeros(len(captions), 1, dtype=torch.long)


class TrainedCaptions:
    """A caption encoder that knows the words of the data set; raises RecipeError when a caption is too long for it."""

    saved = True

    def __init__(self, settings: CaptionText, data: Data, captions: list[str]) -> None:
        if isinstance(data, MovingShapesData):
            vocabulary = caption_terms(places=any(PLACE_WORDS[0] in text for text in captions))
        else:
            vocabulary = tuple(sorted({word for text in captions for word in words_of(text)}))
        longest = max(captions, key=lambda text: len(terms_of(text, vocabulary)))
        needed = len(terms_of(longest, vocabulary)) + 2
        if needed > settings.max_tokens:
            raise RecipeError(
                f"text_encoder.max_tokens: found {settings.max_tokens}, expected at least {needed} "
                f"for the caption {longest!r}"
            )
        self.config = CaptionEncoderConfig(
            vocabulary, settings.width, settings.layers, settings.heads, settings.max_tokens
        )
        self.network: nn.Module = CaptionEncoder(self.config, operations=TrainingOperations)
        self.width = settings.width

    def tokens(self, captions: list[str]) -> Tensor:
        """Word numbers (B, N)."""
        return caption_tokens(self.config, captions)


class FrozenCaptions:
    """A caption encoder that was trained before."""

    def __init__(self, network: CaptionEncoder, *, saved: bool) -> None:
        self.saved = saved
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.config, self.width = network.config, network.config.width

    def tokens(self, captions: list[str]) -> Tensor:
        """Word numbers (B, N)."""
        return caption_tokens(self.config, captions)


def caption_tokens(config: CaptionEncoderConfig, captions: list[str]) -> Tensor:
    """Captions as a caption encoder reads them, (B, N)."""
    rows = [tokenize(text, config.vocabulary, config.max_tokens) for text in captions]
    return torch.tensor(rows, dtype=torch.int64).view(-1, config.max_tokens)


class FrozenClip:
    """CLIP's text encoder, as released text-to-video models use it: padded to its length, last hidden state."""

    saved = False

    def __init__(self, settings: ClipText) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(settings.path)
        if not folder.is_dir():
            raise RecipeError(f"text_encoder.path: {folder} is no folder with a CLIP text model and its tokenizer")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPTextModel.from_pretrained(folder, local_files_only=True)
        self.network: nn.Module = LastHiddenState(model).eval().requires_grad_(False)
        self.width: int = model.config.hidden_size
        self.length: int = model.config.max_position_embeddings

    def tokens(self, captions: list[str]) -> Tensor:
        """Token numbers (B, N), cut and padded to CLIP's length."""
        if not captions:
            return torch.zeros((0, self.length), dtype=torch.int64)
        rows = self.tokenizer(captions, padding="max_length", truncation=True, max_length=self.length)["input_ids"]
        return torch.tensor(rows)


class LastHiddenState(nn.Module):
    """A text model of which only the tokens' encodings are wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N) -> (B, N, D)."""
        encoded: Tensor = self.model(input_ids=tokens).last_hidden_state
        return encoded


class FrozenT5:
    """T5's encoder, as Show-1 and DeepFloyd IF use it: lower case, 77 tokens, the states of all of them."""

    saved = False
    length = 77

    def __init__(self, settings: T5Text) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        folder = Path(settings.path)
        if not folder.is_dir():
            raise RecipeError(f"text_encoder.path: {folder} is no folder with a T5 encoder and its tokenizer")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = T5EncoderModel.from_pretrained(folder, local_files_only=True)
        self.network: nn.Module = UnpaddedStates(model, self.tokenizer.pad_token_id).eval().requires_grad_(False)
        self.width: int = model.config.d_model

    def tokens(self, captions: list[str]) -> Tensor:
        """Token numbers (B, N), the end token inside."""
        if not captions:
            return torch.zeros((0, self.length), dtype=torch.int64)
        texts = [caption.lower().strip() for caption in captions]
        rows = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.length)["input_ids"]
        return torch.tensor(rows)


class UnpaddedStates(nn.Module):
    """A text model that does not attend to padding, though the padding's own states are given away with the others."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N) -> (B, N, D)."""
        encoded: Tensor = self.model(input_ids=tokens, attention_mask=tokens != self.padding).last_hidden_state
        return encoded


class EncodedTexts:
    """What a frozen text encoder makes of captions: each is encoded once, while all of them fit in memory.

    One caption at a time, so that its numbers do not depend on the batch that it first came in. Those that `write` has
    left in a folder are read from there.
    """

    def __init__(self, network: nn.Module, folder: Path | None = None, most: int = 1 << 30) -> None:
        """`most`: bytes of main memory for encoded captions; those beyond are encoded whenever they are needed."""
        self.network, self.folder, self.most, self.bytes = network, folder, most, 0
        self._known: dict[bytes, Tensor] = {}
        if folder is not None and list(folder.glob("texts-*.safetensors")) and self._file().exists():
            with safe_open(self._file(), "pt") as file:  # encodings are views of the file, read when they are used
                tokens, encoded = file.get_tensor("tokens"), file.get_tensor("encoded")
            self._known = dict(zip(map(_key, tokens), encoded, strict=True))

    def write(self, tokens: Tensor) -> int:
        """Encode captions (B, N), each once, and leave them in the folder; returns how many: they fit in memory."""
        assert self.folder is not None
        rows = tokens.unique(dim=0)
        device = next(self.network.parameters()).device
        encoded = torch.cat([self(row[None].to(device)).cpu() for row in tqdm(rows, "encoding captions")])
        temporary = self._file().with_suffix(".tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": rows, "encoded": encoded}, temporary)
        temporary.replace(self._file())
        return len(rows)

    def _file(self) -> Path:
        """Where the captions of this network lie."""
        assert self.folder is not None
        return self.folder / f"texts-{hash_of(self.network, [])}.safetensors"

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, N) -> (B, N, D)."""
        return torch.stack([self._one(row, _key(numbers)) for row, numbers in zip(tokens, tokens.cpu(), strict=True)])

    def _one(self, row: Tensor, key: bytes) -> Tensor:
        """Tokens (N,) -> (N, D)."""
        if key in self._known:
            return self._known[key].to(row.device)
        encoded: Tensor = self.network(row[None])[0]
        if self.bytes + encoded.nbytes <= self.most:
            self._known[key] = encoded.cpu()
            self.bytes += encoded.nbytes
        return encoded


def _key(row: Tensor) -> bytes:
    """What stands for the tokens (N,) of a caption."""
    return row.numpy().tobytes()


def open_text_encoder(
    settings: CaptionText | GivenText | ClipText | T5Text, data: Data, captions: list[str]
) -> TextEncoder:
    """The text encoder that a recipe names."""
    if isinstance(settings, T5Text):
        return FrozenT5(settings)
    if isinstance(settings, ClipText):
        return FrozenClip(settings)
    if isinstance(settings, CaptionText):
        return TrainedCaptions(settings, data, captions)
    network = open_networks(Path(settings.path)).networks.get(TEXT_ENCODER)
    if not isinstance(network, CaptionEncoder):
        found = "no text encoder" if network is None else f"a {type(network).__name__}"
        raise RecipeError(f"text_encoder.path: {settings.path} holds {found}, expected a caption encoder")
    return FrozenCaptions(network, saved=True)
