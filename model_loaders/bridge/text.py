"""Native CLIP objects: the stock text encoder inside a checkpoint, this package's caption encoder, or none at all."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import folder_paths
import torch
from torch import Tensor, nn

from ...kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig, terms_of, tokenize
from ..bundle import DESCRIPTION, describe, description_tensor
from ..checkpoint import TEXT_ENCODER, Checkpoint, Component
from ..errors import CheckpointError
from ..keymap import check_tensors
from .compat import sd, sd1_clip, supported_models_base
from .operations import network_operations
from .t5 import T5, make_t5

log = logging.getLogger(__name__)


def make_clip(checkpoint: Checkpoint) -> sd.CLIP:
    """CLIP of a checkpoint; for a model without text one that knows no words, so that the same graph runs.

    Raises:
        CheckpointError: the text encoder is incomplete or does not fit.
    """
    component = checkpoint.components.get(TEXT_ENCODER)
    if component is None:
        log.info("%s is not made for text: the prompt has no effect", checkpoint.name)
        component = _no_words()
        checkpoint = replace(checkpoint, components={TEXT_ENCODER: component})
    if component.config == T5:
        return make_t5(component.tensors, checkpoint.name)
    if component.network is None:
        return _stock_clip(component.tensors, checkpoint.name)
    config, tensors = component.config, dict(component.tensors)
    description = describe(checkpoint, [TEXT_ENCODER])
    target = supported_models_base.ClipTarget(
        partial(sd1_clip.SD1Tokenizer, tokenizer=partial(CaptionTokenizer, config, description), name="caption"),
        partial(sd1_clip.SD1ClipModel, clip_model=partial(CaptionClipModel, config), name="caption"),
    )
    parameters = sum(tensor.numel() for tensor in tensors.values())
    embeddings = folder_paths.get_folder_paths("embeddings")
    return sd.CLIP(target, embedding_directory=embeddings, parameters=parameters, state_dict=[tensors])


def _stock_clip(tensors: Mapping[str, Tensor], name: str) -> sd.CLIP:
    """ComfyUI's CLIP-L or CLIP-H, which take incomplete files by themselves."""
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}
    if "encoder.layers.0.layer_norm1.weight" in tensors:  # as transformers writes it since version 5
        tensors = {f"text_model.{key}": tensor for key, tensor in tensors.items()}
    # Stable Diffusion 2's encoder is used up to its last layer but one, where files in diffusers' layout end.
    used, unused = "text_model.encoder.layers.22.", "text_model.encoder.layers.23."
    last = {key: tensor for key, tensor in tensors.items() if key.startswith(used)}
    tensors = {**{key.replace(used, unused): tensor for key, tensor in last.items()}, **tensors}
    # The encoders inside checkpoints have no projection of the pooled output; ComfyUI's has one, and leaves it undrawn.
    final = tensors.get("text_model.final_layer_norm.weight")
    if final is not None:
        tensors.setdefault("text_projection.weight", torch.eye(len(final), dtype=final.dtype))
    try:
        clip = sd.load_text_encoder_state_dicts(
            [dict(tensors)],
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            clip_type=sd.CLIPType.STABLE_DIFFUSION,
        )
        network = getattr(clip.cond_stage_model, clip.cond_stage_model.clip).transformer
    except (AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name}: ComfyUI cannot make a CLIP of its text encoder ({reason}).") from error
    check_tensors(network, tensors, f"The text encoder in {name}")
    return clip


def _no_words() -> Component:
    config = CaptionEncoderConfig(vocabulary=(), width=8, layers=1, heads=1, max_tokens=77)
    tensors = {name: torch.zeros_like(weight) for name, weight in CaptionEncoder(config).state_dict().items()}
    return Component(CaptionEncoder, config, tensors)


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
        terms = terms_of(text, self.config.vocabulary)
        unknown = sorted(set(terms) - set(self.config.vocabulary))
        if unknown and self.config.vocabulary:
            log.warning("Words that this text encoder does not know: %s", ", ".join(unknown))
        return {"input_ids": tokenize(text, self.config.vocabulary, len(terms) + 2)}

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their numbers."""
        return {token: number for number, token in enumerate(self.config.tokens)}


class CaptionTokenizer(sd1_clip.SDTokenizer):
    """ComfyUI's prompt syntax (weights, embeddings) over a closed vocabulary."""

    def __init__(
        self,
        config: CaptionEncoderConfig,
        description: Mapping[str, object],
        embedding_directory: list[str] | None = None,
        tokenizer_data: object = None,
    ) -> None:
        self.description = description
        super().__init__(
            max_length=config.max_tokens,
            embedding_directory=embedding_directory,
            embedding_size=config.width,
            embedding_key="caption",
            tokenizer_class=WordTokenizer,
            tokenizer_args={"config": config},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What the stock save nodes write beside the weights: the description that the loaders need."""
        return {DESCRIPTION: description_tensor(self.description)}


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
        self,
        tokens: Tensor | None,
        attention_mask: Tensor | None = None,
        *,
        embeds: Tensor,
        intermediate_output: object = None,
        **unused: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded words (B, N, D) -> tokens (B, N, D), those of the layer asked for, their mean as pooled output."""
        encoded = hidden = self.encode(embeds)
        if isinstance(intermediate_output, int):
            hidden = self.encode(embeds, max(1, intermediate_output % self.num_layers + 1))
        return encoded, hidden, encoded.mean(1)


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
