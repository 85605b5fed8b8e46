"""Native CLIP objects: the stock text encoder inside a checkpoint, or this package's caption encoder."""

import logging
from functools import partial

import folder_paths
import torch
from torch import Tensor, nn

from ...kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig, tokenize, words_of
from ..checkpoint import TEXT_ENCODER, Checkpoint
from .compat import sd, sd1_clip, supported_models_base
from .operations import network_operations

log = logging.getLogger(__name__)


def make_clip(checkpoint: Checkpoint) -> sd.CLIP:
    """CLIP of a checkpoint.

    Raises:
        CheckpointError: the checkpoint has no text encoder.
    """
    component = checkpoint.component(TEXT_ENCODER)
    embeddings = folder_paths.get_folder_paths("embeddings")
    tensors = dict(component.tensors)
    if component.network is None:
        return sd.load_text_encoder_state_dicts(
            [tensors], embedding_directory=embeddings, clip_type=sd.CLIPType.STABLE_DIFFUSION
        )
    config = component.config
    target = supported_models_base.ClipTarget(
        partial(sd1_clip.SD1Tokenizer, tokenizer=partial(CaptionTokenizer, config), name="caption"),
        partial(sd1_clip.SD1ClipModel, clip_model=partial(CaptionClipModel, config), name="caption"),
    )
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return sd.CLIP(target, embedding_directory=embeddings, parameters=parameters, state_dict=[tensors])


class WordTokenizer:
    """Words to numbers, in the form that ComfyUI's tokenizer class drives."""

    def __init__(self, config: CaptionEncoderConfig) -> None:
        self.config = config

    @classmethod
    def from_pretrained(cls, path: str, config: CaptionEncoderConfig) -> "WordTokenizer":
        """There is no file: the vocabulary is part of the configuration."""
        return cls(config)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Start, words, end, without padding; unknown words are named in the log."""
        words = words_of(text)
        unknown = sorted(set(words) - set(self.config.vocabulary))
        if unknown:
            log.warning("Words that this text encoder does not know: %s", ", ".join(unknown))
        return {"input_ids": tokenize(text, self.config.vocabulary, len(words) + 2)}

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their numbers."""
        return {token: number for number, token in enumerate(self.config.tokens)}


class CaptionTokenizer(sd1_clip.SDTokenizer):
    """ComfyUI's prompt syntax (weights, embeddings) over a closed vocabulary."""

    def __init__(
        self, config: CaptionEncoderConfig, embedding_directory: list[str] | None = None, tokenizer_data: object = None
    ) -> None:
        super().__init__(
            max_length=config.max_tokens,
            embedding_directory=embedding_directory,
            embedding_size=config.width,
            embedding_key="caption",
            tokenizer_class=WordTokenizer,
            tokenizer_args={"config": config},
        )


class _CaptionTransformer(CaptionEncoder):
    """The caption encoder in the form that ComfyUI's CLIP model drives."""

    def __init__(
        self, config: dict[str, CaptionEncoderConfig], dtype: torch.dtype, device: torch.device, operations: type
    ) -> None:
        super().__init__(config["encoder"], dtype=dtype, device=device, operations=network_operations(operations))
        self.num_layers = self.config.layers

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.word_embedding

    def forward(  # type: ignore[override]
        self, tokens: Tensor | None, attention_mask: Tensor | None = None, *, embeds: Tensor, **unused: object
    ) -> tuple[Tensor, None, Tensor]:
        """Embedded words (B, N, D) -> tokens (B, N, D), no intermediate layer, their mean as pooled output."""
        encoded = self.encode(embeds)
        return encoded, None, encoded.mean(1)


class CaptionClipModel(sd1_clip.SDClipModel):
    """ComfyUI's text model around a caption encoder."""

    def __init__(
        self,
        config: CaptionEncoderConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, object] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_length=config.max_tokens,
            dtype=dtype,
            textmodel_json_config={"encoder": config},
            model_class=_CaptionTransformer,
            special_tokens={"start": 0, "end": 1, "pad": 1},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
