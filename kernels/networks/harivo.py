"""HARIVO: Harnessing Text-to-Image Models for Video Generation (arXiv 2410.07763).

What is added to a frozen image UNet: a network that maps the noisy latents of a clip before the UNet sees them, text
tokens for each frame, and a motion module behind every residual block (and its transformer). The motion modules alone
are AnimateDiff's (arXiv 2307.04725).

Shapes: B videos, F frames, C channels, H, W latent size, M text tokens, D their width, K tokens of a frame.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.temporal_attention import temporal_attention
from ..layers.chunking import add_residual
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from ..layers.resnet import Step
from ..layers.transformers import TemporalBlock, Transformer

CHUNK = 77
"""Tokens of a text that CLIP encodes at once."""


@dataclass(frozen=True)
class MappingConfig:
    """The network in front of the UNet.

    Attributes:
        channels: of the latents.
        kernel: of its convolutions, along frames, height and width.
        heads, head_width: of its attention over frames.
    """

    channels: int = 4
    kernel: tuple[int, int, int] = (3, 3, 3)
    heads: int = 8
    head_width: int = 64


@dataclass(frozen=True)
class FrameTokensConfig:
    """The generator of text tokens for each frame.

    Attributes:
        width: of a token, D.
        text_tokens: M, tokens of the text it reads.
        frames: the most frames it knows.
        per_frame: K, tokens that it makes for a frame.
    """

    width: int = 768
    text_tokens: int = CHUNK
    frames: int = 24
    per_frame: int = 3


@dataclass(frozen=True)
class MotionConfig:
    """What is added to an image UNet; the defaults are for Stable Diffusion 1.5.

    Attributes:
        widths: of the UNet's levels.
        blocks_per_level: residual blocks of a level on the way down; on the way up there is one more.
        middle: whether a module stands in the middle block.
        max_frames: the longest clip that the motion modules know.
        heads: of their attention.
        mapping, tokens: of the other two parts, or None without them, as in AnimateDiff.
        joint_norms: whether the UNet's residual blocks and its output take the statistics of their norms over all
            frames of a clip, as AnimateDiff's first version was trained.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks_per_level: int = 2
    middle: bool = False
    max_frames: int = 24
    heads: int = 8
    mapping: MappingConfig | None = None
    tokens: FrameTokensConfig | None = None
    joint_norms: bool = False


class MotionNetwork(nn.Module):
    """Motion modules in the order in which the UNet's blocks run, mapping network and frame tokens."""

    def __init__(
        self,
        config: MotionConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.config = config

        def modules(widths: tuple[int, ...], count: int) -> nn.ModuleList:
            return nn.ModuleList(motion_module(width, config.heads, **build) for width in widths for _ in range(count))

        self.down = modules(config.widths, config.blocks_per_level)
        self.middle = modules(config.widths[-1:], int(config.middle))
        self.up = modules(config.widths[::-1], config.blocks_per_level + 1)
        self.mapping = MappingNetwork(config.mapping, **build) if config.mapping else None
        self.tokens = FrameTokens(config.tokens, **build) if config.tokens else None

    def motion_module(self, place: str, index: int) -> Transformer | None:
        """The module behind block `index` of "input", "middle" or "output", counted as in Stable Diffusion."""
        if place == "input":
            # The first block of a level is the input convolution or the down-sampler of the level before.
            level, within = divmod(index, self.config.blocks_per_level + 1)
            index = level * self.config.blocks_per_level + within - 1
            return self.down[index] if within else None  # type: ignore[return-value]
        blocks = self.middle if place == "middle" else self.up
        return blocks[index] if index < len(blocks) else None  # type: ignore[return-value]

    def move(self, x: Tensor, place: str, index: int, frames: int) -> Tensor:
        """The motion module of a block on its output x ((B F), C, H, W), where there is one."""
        module = self.motion_module(place, index)
        # What step has beside the number of frames is not for them.
        return x if module is None else module(x, Step(frames, x.new_empty(0)))


def motion_module(
    channels: int,
    heads: int = 8,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: type[TorchOperations] = TorchOperations,
) -> Transformer:
    """AnimateDiff's temporal transformer: norms per frame, two attentions that know a frame's place in the clip."""
    build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
    block = TemporalBlock(channels, heads, positions=True, **build)
    return Transformer(channels, channels, block, clip_norm=False, groups=32, **build)


class MappingNetwork(nn.Module):
    """Reshapes the noise of a clip (Section 3.2): out = x + y + project(attention(norm(y))), y = convolutions of x.

    It sees the noisy latents as scaled for the UNet, at every step.
    """

    def __init__(
        self,
        config: MappingConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        channels, inner = config.channels, config.heads * config.head_width
        depth, height, width = config.kernel
        padding = (depth // 2, height // 2, width // 2)
        self.heads = config.heads
        self.convs = nn.ModuleList(
            operations.Conv3d(channels, channels, config.kernel, padding=padding, **layer) for _ in range(2)
        )
        self.norm = operations.LayerNorm(channels, **layer)
        self.qkv = operations.Linear(channels, 3 * inner, bias=False, **layer)
        self.out = operations.Linear(inner, channels, **layer)
        self.project_out = operations.Linear(channels, channels, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, F, H, W) -> same shape."""
        inner = self.convs[1](F.silu(self.convs[0](x)))
        video = inner.permute(0, 2, 3, 4, 1).flatten(2, 3)
        frames = video.shape[1]
        width = frames * (4 * self.out.in_features + 2 * self.heads * frames)
        video = add_residual(video.contiguous(), self._attend, 2, width)
        return x + video.unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)

    def _attend(self, video: Tensor) -> Tensor:
        """(B, F, P, C) -> same shape."""
        query, key, value = self.qkv(self.norm(video)).chunk(3, dim=-1)
        return self.project_out(self.out(temporal_attention(query, key, value, self.heads)))


class FrameTokens(nn.Module):
    """Text tokens for every frame, made of the text's own (Section 3.3)."""

    def __init__(
        self,
        config: FrameTokensConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.config = config
        self.project_in = operations.Linear(config.width, config.width, **layer)
        self.mix = operations.Linear(config.text_tokens, config.frames * config.per_frame, bias=False, **layer)
        self.layers = nn.ModuleList(operations.Linear(config.width, config.width, **layer) for _ in range(3))

    def forward(self, text: Tensor) -> Tensor:
        """Text (B, M, D) -> (B, F, K, D)."""
        # Twice, as printed.
        hidden = F.silu(F.silu(self.project_in(text)))
        hidden = F.silu(self.mix(hidden.transpose(1, 2)).transpose(1, 2))
        for layer in self.layers:
            hidden = F.silu(layer(hidden))
        return hidden.unflatten(1, (self.config.frames, self.config.per_frame))

    def append(self, context: Tensor, frames: int) -> Tensor:
        """The text of every frame ((B F), N, D) -> ((B F), N + tokens, D), the text first.

        Every whole chunk of M tokens gives K tokens to its frame, so that texts which were repeated to one length keep
        their weight. Without a whole chunk there are none.

        Args:
            context: texts; those of a video's frames may differ.
            frames: F of the videos; at most those of the configuration.
        """
        length = self.config.text_tokens
        count = context.shape[1] // length
        if not count:
            return context
        chunks = context[:, : count * length].unflatten(1, (count, length))
        tokens = self(chunks.flatten(0, 1)).unflatten(0, (-1, count))
        own = torch.arange(len(context), device=context.device)
        return torch.cat([context, tokens[own, :, own % frames].flatten(1, 2)], dim=1)
