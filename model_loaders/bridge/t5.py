"""T5's encoder as CLIP of models on pixels (Show-1, DeepFloyd IF): the raw states of 77 tokens."""

import logging
from collections.abc import Mapping
from functools import partial

import folder_paths
from torch import Tensor

from ...kernels.networks.show1 import TEXT_TOKENS
from ..errors import CheckpointError
from ..keymap import check_tensors
from ..unet_layout import count
from .compat import sd, sd1_clip, sd3_clip, supported_models_base

log = logging.getLogger(__name__)

T5 = "t5 xxl"
"""What checkpoints call this network of ComfyUI."""
_NAME = "t5xxl"
_TABLE = "shared.weight"


class PixelTextTokenizer(sd3_clip.T5XXLTokenizer):
    """The released use of T5's tokens: lower case, cut or padded to 77 with the end token inside."""

    def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: object = None) -> None:
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
        self.max_length, self.min_length, self.pad_to_max_length = TEXT_TOKENS, TEXT_TOKENS, True

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: object
    ) -> list[list[tuple[object, ...]]]:
        """One list of 77 tokens with their weights; where ComfyUI would begin another, the prompt ends."""
        lists = super().tokenize_with_weights(text.lower().strip(), return_word_ids, **options)
        if len(lists) > 1:
            log.warning(
                "The prompt has more than %d tokens, which is all this model reads: its end is left out",
                TEXT_TOKENS,
            )
        return lists[:1]


def make_t5(tensors: Mapping[str, Tensor], name: str) -> sd.CLIP:
    """ComfyUI's T5 of any size. Padding is masked inside it, and its states are not: models see them all.

    Raises:
        CheckpointError: the text encoder is incomplete or does not fit.
    """
    # The table of words is stored twice in pickled files, under either name in others.
    tensors = {_TABLE if key == "encoder.embed_tokens.weight" else key: tensor for key, tensor in tensors.items()}
    try:
        sizes = _sizes(tensors)
    except (LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"{name}: its text encoder is not T5's ({error!r} is missing or misshapen): download it again."
        ) from error
    target = supported_models_base.ClipTarget(
        partial(sd1_clip.SD1Tokenizer, tokenizer=PixelTextTokenizer, name=_NAME),
        partial(sd1_clip.SD1ClipModel, clip_model=partial(sd3_clip.T5XXLModel, attention_mask=True), name=_NAME),
    )
    clip = sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        state_dict=[tensors],
        model_options={f"{_NAME}_model_config": sizes},
    )
    network = getattr(clip.cond_stage_model, clip.cond_stage_model.clip).transformer
    check_tensors(network, tensors, f"The text encoder in {name}")
    return clip


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What shapes say of T5's configuration."""
    first = "encoder.block.0.layer"
    heads = tensors[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    words, width = tensors[_TABLE].shape
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": tensors[f"{first}.0.SelfAttention.q.weight"].shape[0] // heads,
        "num_heads": heads,
        "d_ff": tensors[f"{first}.1.DenseReluDense.wo.weight"].shape[1],
        "num_layers": count(tensors, r"^encoder\.block\.(\d+)\."),
    }
