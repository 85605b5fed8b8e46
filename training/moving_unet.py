"""A frozen image UNet of diffusers that moves: hooks put HARIVO's parts around it and into it, for one call at a time.

Shapes: B videos, F frames, C channels, H, W latent size, N text tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.layers.chunking import chunk_size
from ..kernels.networks.harivo import MotionNetwork
from .motion_losses import attention_change

# Classes of diffusers, whose types cannot be seen through its lazy imports.
UNet2DConditionModel: TypeAlias = Any
Attention: TypeAlias = Any


class MovingUNet:
    """Stable Diffusion's UNet on the frames of videos, with any motion network that fits it.

    Between calls the UNet is the image model that it was.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.blocks = list(_blocks(unet))
        self.decoder_attention = [
            block.attn1 for up in unet.up_blocks for layer in getattr(up, "attentions", ())
            for block in layer.transformer_blocks
        ]  # fmt: skip
        """Spatial self-attention on the way up, the deepest first."""

    def __call__(
        self,
        network: MotionNetwork,
        noisy: Tensor,
        times: Tensor,
        context: Tensor,
        *,
        still: bool = False,
        deepest: list[Tensor] | None = None,
        changes: list[Tensor] | None = None,
    ) -> Tensor:
        """Noisy latents (B, C, F, H, W) at times (B,) with texts (B, N, D) -> prediction (B, C, F, H, W).

        Args:
            network: motion modules, mapping network and frame tokens.
            noisy, times, context: as the image UNet takes them, of whole videos.
            still: the image model's branch: each frame by itself, behind the mapping network (Eq. 2).
            deepest: gets the output of the middle block, ((B F), C, H, W).
            changes: get how much each layer of the decoder's spatial attention changes from frame to frame.
        """
        frames = noisy.shape[2]
        if network.mapping is not None:
            noisy = network.mapping(noisy)
        text = context.repeat_interleave(frames, dim=0)
        with ExitStack() as hooks:
            if not still:
                if network.tokens is not None:
                    text = network.tokens.append(text, frames)
                for layer, place, index in self.blocks:
                    hooks.enter_context(layer.register_forward_hook(_mover(network, place, index, frames)))
            if deepest is not None:
                keep = deepest.append
                hooks.enter_context(self.unet.mid_block.register_forward_hook(lambda module, _, out: keep(out)))
            if changes is not None:
                for attention in self.decoder_attention:
                    hooks.enter_context(attention.register_forward_pre_hook(_measurer(changes, frames)))
            rows = noisy.transpose(1, 2).flatten(0, 1)
            out = self.unet(rows, times.repeat_interleave(frames), text, return_dict=False)[0]
        return out.unflatten(0, (-1, frames)).transpose(1, 2)


class MovingModel(nn.Module):
    """An image UNet and a motion network as one text-to-video network."""

    def __init__(self, unet: UNet2DConditionModel, network: MotionNetwork) -> None:
        super().__init__()
        self.unet, self.network = unet, network
        self.moving = MovingUNet(unet)

    def forward(self, noisy: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """noisy (B, C, F, H, W), times (B,), context (B, N, D) -> prediction like noisy."""
        return self.moving(self.network, noisy, times, context)


def attention_changes(attention: Attention, hidden: Tensor, frames: int) -> Tensor:
    """Change from frame to frame of the maps of a self-attention layer with inputs ((B F), N, C), a scalar.

    Maps of a whole clip can be larger than the network. Here they exist for a few heads at a time; of their graph only
    queries and keys are kept, and the maps are computed again for the gradient.
    """
    query, key = (
        layer(hidden).unflatten(-1, (attention.heads, -1)).unflatten(0, (-1, frames)).transpose(2, 3)
        for layer in (attention.to_q, attention.to_k)
    )
    size = chunk_size(attention.heads, query.shape[0] * frames * query.shape[3] ** 2, query)
    parts = zip(query.split(size, dim=2), key.split(size, dim=2), strict=True)
    shares = [
        checkpoint(_change, *part, attention.scale, use_reentrant=False, preserve_rng_state=False) * part[0].shape[2]
        for part in parts
    ]
    return torch.stack(shares).sum() / attention.heads


def _change(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Change of the maps of heads (B, F, heads, N, width)."""
    return attention_change((query @ key.transpose(-1, -2) * scale).softmax(dim=-1))


def _blocks(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, str, int]]:
    """Layers that have a motion module behind them, with their place and number as in Stable Diffusion."""
    per_level = unet.config.layers_per_block + 1
    # The first block on the way down is the input convolution, or the down-sampler of the level before.
    for place, levels, first in (("input", unet.down_blocks, 1), ("output", unet.up_blocks, 0)):
        for level, block in enumerate(levels):
            for index, layer in enumerate(getattr(block, "attentions", block.resnets)):
                yield layer, place, level * per_level + first + index
    yield unet.mid_block.attentions[0], "middle", 0


def _mover(network: MotionNetwork, place: str, index: int, frames: int) -> Callable[..., Any]:
    def move(layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        """Transformers of diffusers give tuples, residual blocks tensors."""
        if isinstance(output, tuple):
            return (network.move(output[0], place, index, frames),)
        return network.move(output, place, index, frames)

    return move


def _measurer(changes: list[Tensor], frames: int) -> Callable[..., None]:
    def measure(attention: Attention, inputs: tuple[Tensor]) -> None:
        changes.append(attention_changes(attention, inputs[0], frames))

    return measure
