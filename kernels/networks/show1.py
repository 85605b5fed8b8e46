"""Show-1: Marrying Pixel and Latent Diffusion Models for Text-to-Video Generation (arXiv 2309.15818).

One network for the stages that work on pixels: keyframes, interpolation, the first super-resolution, and the
super-resolution of single pictures that gives the latter its first frame. It is the U-Net of DeepFloyd IF, with
temporal convolutions and temporal transformers behind its layers (section 3.2). The second super-resolution works on
latents and has the layout of ModelScopeT2V, in `higen`.

Shapes: B videos, T frames, C channels, H, W size in pixels, P = H*W, N text tokens, D context width, E embedding.
Between layers a video is (B*T, C, H, W) in channels-last memory, which is the memory of tokens (B, T, P, C).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.group_norm import ACTIVATIONS, Activation
from ..layers.chunking import map_frames
from ..layers.embeddings import Perceptron, sinusoid
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations, norm_groups
from ..layers.resnet import ClipNorm, ResidualBlock, Step
from ..layers.temporal import TemporalConvolution
from ..layers.transformers import TemporalBlock, Transformer
from .skeleton import Blocks, Skeleton

PixelStage = Literal["base", "interpolation", "sr1", "first frame"]

COLOURS = 3
INTERPOLATION_CHANNELS = COLOURS + 1
"""What interpolation sees beside the noisy video: colours blended between keyframes, and a mask of these."""
NOISE_LEVELS = 1000
"""Levels of the noise on the small video that super-resolution is given; the released scripts use 250 (150)."""
TEXT_TOKENS = 77
"""Tokens of the text that the stages were trained with, padding included."""
ACTIVATION: Activation = "gelu"
TEXT_NORM_GROUPS = 32
"""Groups of the norm of the text in front of each attention, whatever those of the other norms."""


@dataclass(frozen=True)
class PixelUNetConfig:
    """Numbers of the stages on pixels; the defaults are those of the keyframes as released (`show-1-base`).

    Attributes:
        in_channels: colours of the noisy video, then those of what it is conditioned on.
        out_channels: colours of the prediction, then as many of a variance, which videos are sampled without.
        model_channels: width of the first level; `channel_mult` multiplies it per level.
        num_res_blocks: residual blocks of each level.
        attention_factors: downsampling factors at which attention is used.
        embedding_width: E.
        text_width: width of the text encoder's tokens.
        context_width: D, width of the tokens that attention sees.
        pooling_heads: heads of the attention that makes one vector of the text.
        head_width: channels of a head of spatial attention.
        temporal: whether there are layers over time; without them every frame is a picture by itself.
        temporal_heads: heads of temporal attention, whatever their width.
        noise_levels: levels of noise on the small video that super-resolution is given; 0 without one.
        residual_divisor: of the sum that each residual block gives.
        norm_groups: groups of every norm, but those of temporal convolutions and of the text.
    """

    in_channels: int = COLOURS
    out_channels: int = 2 * COLOURS
    model_channels: int = 320
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    attention_factors: tuple[int, ...] = (2, 4, 8)
    embedding_width: int = 1280
    text_width: int = 4096
    context_width: int = 1280
    pooling_heads: int = 64
    head_width: int = 64
    temporal: bool = True
    temporal_heads: int = 64
    noise_levels: int = 0
    residual_divisor: float = 1.0
    norm_groups: int = 32

    @property
    def stage(self) -> PixelStage | None:
        """Which stage of the cascade this is, or None for a network that has no place in it."""
        known: dict[tuple[int, bool, bool], PixelStage] = {
            (0, True, False): "base",
            (INTERPOLATION_CHANNELS, True, False): "interpolation",
            (COLOURS, True, True): "sr1",
            (COLOURS, False, True): "first frame",
        }
        return known.get((self.in_channels - COLOURS, self.temporal, self.noise_levels > 0))

    @property
    def predicted_channels(self) -> int:
        """Channels of the prediction; any behind them are of its variance."""
        return min(self.out_channels, COLOURS)

    @property
    def threshold(self) -> float:
        """Largest value that predicted clean frames are divided by while they are sampled (`thresholded`)."""
        return 1.0 if self.noise_levels else 1.5

    @property
    def multiple(self) -> int:
        """Height and width are multiples of this: every level halves them evenly."""
        return 2 ** (len(self.channel_mult) - 1)


class FrameBlock(ResidualBlock):
    """A residual block on every frame, a few at a time where they are large."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: PixelUNetConfig,
        resample: Literal["down", "up"] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        ways = {
            "down": partial(F.avg_pool2d, kernel_size=2),
            "up": partial(F.interpolate, scale_factor=2, mode="nearest"),
            None: None,
        }
        super().__init__(
            in_channels,
            out_channels,
            config.embedding_width,
            groups=config.norm_groups,
            scale_shift=True,
            activation=ACTIVATION,
            resample=ways[resample],
            divisor=config.residual_divisor,
            **build,
        )
        grown = 4 if resample == "up" else 1
        # Of a pixel: the first norm's result, then convolutions and the second norm.
        self.values = in_channels + 3 * out_channels * grown

    def forward(self, x: Tensor, step: Step, size: object = None) -> Tensor:
        """x (B*T, C_in, H, W) -> (B*T, C_out, H, W), half or twice as high and wide where it resamples."""

        def block(frames: Tensor, embedding: Tensor) -> Tensor:
            return super(FrameBlock, self).forward(frames, replace(step, frames=1, embedding=embedding))

        return map_frames(block, x, step.embedding, self.values * x.shape[2] * x.shape[3])


class SpaceTimeResidual(nn.Module):
    """A residual block on every frame, then temporal convolutions, which keep SiLU and 32 groups."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: PixelUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.spatial = FrameBlock(in_channels, out_channels, config, **build)
        self.temporal = TemporalConvolution(out_channels, **build) if config.temporal else None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W), embedding per frame -> (B*T, C', H, W)."""
        x = self.spatial(x, step)
        return x if self.temporal is None else self.temporal(x, step.frames)


class JointAttention(nn.Module):
    """Pixels attend to the text and to all pixels of their frame under one softmax; residual."""

    def __init__(
        self,
        channels: int,
        config: PixelUNetConfig,
        first_column: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        """`first_column`: where the text's keys for this layer begin among those for all layers.

        Raises:
            ValueError: the channels are no multiple of the width of a head.
        """
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        self.operations = operations
        self.heads = _divided(channels, "head_width", config.head_width)
        self.columns = slice(first_column, first_column + 2 * channels)
        self.norm = ClipNorm(channels, groups=config.norm_groups, operations=operations, **layer)
        self.qkv = operations.Linear(channels, 3 * channels, **layer)
        groups = norm_groups(config.context_width, TEXT_NORM_GROUPS)
        self.text_norm = operations.GroupNorm(groups, config.context_width, eps=1e-5, **layer)
        self.text_key_value = operations.Linear(config.context_width, 2 * channels, **layer)
        self.out = operations.Linear(channels, channels, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        assert step.context is not None  # held by the network's `forward`
        channels = x.shape[1]
        tokens = self.norm(x, 1).permute(0, 2, 3, 1).flatten(1, 2)
        query, own = self.qkv(tokens).split([channels, 2 * channels], dim=-1)
        text = step.context[:, None, :, self.columns].expand(-1, step.frames, -1, -1)
        joint = torch.cat([text, own.unflatten(0, (-1, step.frames))], dim=2).flatten(0, 1)
        key, value = joint.chunk(2, dim=-1)
        tokens = self.out(self.operations.attention(query, key, value, self.heads))
        return x + tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def keys_values(self, text: Tensor) -> Tensor:
        """Text tokens (B, N, D) -> keys and values (B, N, 2C); the norm's statistics are over all tokens together."""
        return self.text_key_value(self.text_norm(text.transpose(1, 2)).transpose(1, 2))


class SpaceTimeAttention(nn.Module):
    """Joint attention within frames, then a transformer over the frames of each pixel."""

    def __init__(
        self,
        channels: int,
        config: PixelUNetConfig,
        first_column: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.joint = JointAttention(channels, config, first_column, **build)
        self.temporal: Transformer | None = None
        if config.temporal:
            _divided(channels, "temporal_heads", config.temporal_heads)
            block = TemporalBlock(channels, config.temporal_heads, **build)
            groups = config.norm_groups
            self.temporal = Transformer(channels, channels, block, clip_norm=True, groups=groups, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        x = self.joint(x, step)
        return x if self.temporal is None else self.temporal(x, step)


class TextPooling(nn.Module):
    """One vector of the text: attention of its mean on itself and on all tokens, padding included."""

    def __init__(
        self,
        config: PixelUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        width = config.text_width
        _divided(width, "pooling_heads", config.pooling_heads)
        self.heads, self.operations = config.pooling_heads, operations
        self.norm_in = operations.LayerNorm(width, **layer)
        self.place = operations.Embedding(1, width, **layer)
        self.query = operations.Linear(width, width, **layer)
        self.key_value = operations.Linear(width, 2 * width, **layer)
        self.project_out = operations.Linear(width, config.embedding_width, **layer)
        self.norm_out = operations.LayerNorm(config.embedding_width, **layer)

    def forward(self, text: Tensor) -> Tensor:
        """Text (B, N, text width) -> (B, E)."""
        text = self.norm_in(text)
        place = self.place(torch.zeros(1, dtype=torch.long, device=text.device)).to(text.dtype)
        mean = text.mean(1, keepdim=True) + place
        key, value = self.key_value(torch.cat([mean, text], dim=1)).chunk(2, dim=-1)
        pooled = self.operations.attention(self.query(mean), key, value, self.heads)
        return self.norm_out(self.project_out(pooled[:, 0]))


class PixelUNet(nn.Module):
    """The denoiser of every stage of Show-1 that works on pixels."""

    # Peak of live values in a forward pass without gradients, per pixel and model channel (counted).
    activation_values = 15.0
    # Pictures are made by the stage without layers over time.
    fewest_frames = 1
    text_tokens = TEXT_TOKENS

    def __init__(
        self,
        config: PixelUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        """Raises ValueError where heads do not fit the widths."""
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width, embedding = config.model_channels, config.embedding_width
        self.config = config
        self.time_embedding = Perceptron(width, embedding, activation=ACTIVATION, **build)
        if config.noise_levels:
            self.noise_embedding = Perceptron(width, embedding, activation=ACTIVATION, **build)
        self.text_pooling = TextPooling(config, **build)
        self.text_in = operations.Linear(config.text_width, config.context_width, **layer)
        self.conv_in = operations.Conv2d(config.in_channels, width, 3, padding=1, **layer)
        columns = 0

        def attention(channels: int, level: int) -> SpaceTimeAttention:
            nonlocal columns
            columns += 2 * channels
            return SpaceTimeAttention(channels, config, columns - 2 * channels, **build)

        blocks = Blocks(
            residual=lambda cin, cout: SpaceTimeResidual(cin, cout, config, **build),
            attention=attention,
            downsample=lambda channels: FrameBlock(channels, channels, config, "down", **build),
            upsample=lambda channels: FrameBlock(channels, channels, config, "up", **build),
        )
        self.skeleton = Skeleton(width, config.channel_mult, config.num_res_blocks, config.attention_factors, blocks)
        self.norm_out = ClipNorm(width, groups=config.norm_groups, activation=ACTIVATION, **build)
        self.conv_out = operations.Conv2d(width, config.out_channels, 3, padding=1, **layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        noise_level: Tensor | None = None,
        text_keys_values: Tensor | None = None,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            x: (B, C, T, H, W) in -1..1, the noisy video and behind it what it is conditioned on.
            timesteps: (B,), 0 to 999.
            context: states of the text encoder (B, N, text width); not needed beside `encode_text`'s.
            noise_level: (B,) level of the noise on the small video, 0 to 999, for super-resolution.
            text_keys_values, text_embedding: from `encode_text`; they are the same at every timestep.

        Returns:
            (B, out_channels, T, H, W): the prediction, then its variance.

        Raises:
            ValueError: the text or the noise level is missing or does not belong to this stage, or a size does not
                halve evenly.
        """
        self._check_size(x)
        if text_keys_values is None or text_embedding is None:
            text = self.encode_text(self._checked_text(context).to(x.dtype))
            text_keys_values, text_embedding = text["text_keys_values"], text["text_embedding"]
        embedding = self._embed(timesteps, x) + text_embedding.to(x.dtype)
        if self.config.noise_levels:
            if noise_level is None:
                raise ValueError("Super-resolution needs the level of the noise on the small video, found none.")
            features = sinusoid(noise_level, self.config.model_channels)
            embedding = embedding + self.noise_embedding(features.to(x.dtype))
        elif noise_level is not None:
            raise ValueError("This stage knows no noise level of a small video: leave it out.")
        embedding = ACTIVATIONS[ACTIVATION](embedding)
        frames = x.shape[2]
        step = Step(frames, embedding.repeat_interleave(frames, dim=0), text_keys_values.to(x.dtype))
        h = self.conv_in(x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last))
        h = self.skeleton(h, step)
        h = self.conv_out(self.norm_out(h, 1))
        return h.unflatten(0, (-1, frames)).transpose(1, 2)

    def encode_text(self, text: Tensor) -> dict[str, Tensor]:
        """All that the network computes of a text alone, as keyword arguments of `forward`.

        Text (B, N, text width) -> keys and values of all attentions side by side (B, N, sum of 2C), and (B, E). Tokens
        behind the 77th are left out: an encoder that masks padding gives the same 77 however far it pads.
        """
        text = text[:, :TEXT_TOKENS]
        tokens = self.text_in(text)
        layers = [layer for layer in self.modules() if isinstance(layer, JointAttention)]
        keys_values = torch.cat([layer.keys_values(tokens) for layer in layers], dim=-1)
        return {"text_keys_values": keys_values, "text_embedding": self.text_pooling(text)}

    def _embed(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, E)."""
        return self.time_embedding(sinusoid(timesteps, self.config.model_channels).to(like.dtype))

    def _checked_text(self, context: Tensor | None) -> Tensor:
        width = self.config.text_width
        if context is None or context.shape[-1] != width:
            found = "none" if context is None else f"width {context.shape[-1]}"
            raise ValueError(f"The text conditioning must have width {width}, found {found}: use this model's CLIP.")
        return context

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[3:]
        if height % self.config.multiple or width % self.config.multiple:
            raise ValueError(
                f"The video has height x width {height}x{width}, this network takes multiples of "
                f"{self.config.multiple}: scale or crop it."
            )


def _divided(channels: int, name: str, parts: int) -> int:
    if parts < 1 or channels % parts:
        raise ValueError(f"{name} is {parts}, expected a divisor of the {channels} channels there")
    return channels // parts
