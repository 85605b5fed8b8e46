"""LVDM: Latent Video Diffusion Models for High-Fidelity Long Video Generation (arXiv 2211.13221).

Two denoising networks. `LatentVideoUNet` works on latents of the 3D autoencoder (short videos; with a mask channel and
a table of noise levels also prediction and interpolation). `TextToVideoUNet` is the image network of Stable Diffusion
with two temporal self-attentions in every transformer block.

Shapes: B videos, T latents along time, C channels, H, W latent size, P = H*W pixels, N text tokens, D context width.
Between layers a video is (B*T, C, H, W) in channels-last memory, which is the memory of tokens (B, T, P, C).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import CrossAttention, FeedForward, SelfAttention
from ..layers.chunking import add_residual
from ..layers.embeddings import Perceptron, sinusoid
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from ..layers.resnet import ClipNorm, Downsample, ResidualBlock, Step, Upsample
from ..layers.temporal import PixelNorm, TemporalAttention
from .skeleton import Blocks, Skeleton


@dataclass(frozen=True)
class LatentVideoUNetConfig:
    """Numbers of the networks on 3D-autoencoder latents (released: sky, taichi, UCF-101).

    Attributes:
        in_channels: latent channels, plus one mask channel in the mask-conditional models.
        out_channels: channels of the predicted noise.
        model_channels: width of the first level; `channel_mult` multiplies it per level.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors at which attention is used.
        num_heads: heads of every attention.
        temporal_length: largest distance of the position tables, in latents.
        relative_positions: whether temporal attention has position tables.
        scale_shift: the time embedding scales and shifts, instead of being added.
        noise_levels: rows of the table of noise levels of the conditions; 0 without one.
        norm_groups: groups of every GroupNorm.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_factors: tuple[int, ...] = (2, 4, 8)
    num_heads: int = 4
    temporal_length: int = 4
    relative_positions: bool = True
    scale_shift: bool = True
    noise_levels: int = 0
    norm_groups: int = 32


@dataclass(frozen=True)
class TextToVideoUNetConfig:
    """Numbers of the text-to-video network (released: text2video).

    Attributes:
        in_channels, out_channels: latent channels.
        model_channels: width of the first level; `channel_mult` multiplies it per level.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors at which transformers are used.
        num_heads: heads of every attention.
        depth: transformer blocks per transformer.
        context_width: width of the text tokens.
        temporal_length: largest distance of the position tables, in frames.
        relative_positions: whether temporal attention has position tables.
        norm_groups: groups of every GroupNorm.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_factors: tuple[int, ...] = (1, 2, 4)
    num_heads: int = 8
    depth: int = 1
    context_width: int = 768
    temporal_length: int = 16
    relative_positions: bool = True
    norm_groups: int = 32


class SpaceTimeAttention(nn.Module):
    """Spatial, then temporal residual self-attention, each behind its own GroupNorm (LVDM section 3.2)."""

    def __init__(
        self,
        channels: int,
        config: LatentVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.spatial_norm = ClipNorm(channels, groups=config.norm_groups, **build)
        self.spatial = SelfAttention(channels, config.num_heads, qkv_bias=True, **build)
        self.temporal_norm = PixelNorm(channels, groups=config.norm_groups, **build)
        self.temporal = TemporalAttention(
            channels,
            config.num_heads,
            max_distance=config.temporal_length if config.relative_positions else None,
            qkv_bias=True,
            transposed_keys=True,
            **build,
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        tokens = _tokens(x) + self.spatial(_tokens(self.spatial_norm(x, 1)))
        video = tokens.unflatten(0, (-1, step.frames))
        width = 6 * step.frames * x.shape[1]
        video = add_residual(video, lambda part: self.temporal(self.temporal_norm(part)), 2, width)
        return _image(video.flatten(0, 1), x)


class TransformerBlock(nn.Module):
    """Spatial self-, temporal self-, text cross-, temporal self-attention and feed-forward, each pre-norm residual.

    The second temporal attention never sees the text, in spite of its place (released code).
    """

    def __init__(
        self,
        channels: int,
        config: TextToVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        max_distance = config.temporal_length if config.relative_positions else None
        self.spatial_norm = operations.LayerNorm(channels, **layer)
        self.spatial = SelfAttention(channels, config.num_heads, **build)
        self.temporal_norm1 = operations.LayerNorm(channels, **layer)
        self.temporal1 = TemporalAttention(channels, config.num_heads, max_distance=max_distance, **build)
        self.text_norm = operations.LayerNorm(channels, **layer)
        self.text = CrossAttention(channels, config.context_width, config.num_heads, **build)
        self.temporal_norm2 = operations.LayerNorm(channels, **layer)
        self.temporal2 = TemporalAttention(channels, config.num_heads, max_distance=max_distance, **build)
        self.feed_forward_norm = operations.LayerNorm(channels, **layer)
        self.feed_forward = FeedForward(channels, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, P, C) -> same shape; overwritten unless gradients are recorded."""
        frames, (_, pixels, channels) = step.frames, x.shape
        temporal_width = frames * (6 * channels + self.temporal1.heads * 2 * frames)
        x = add_residual(x, lambda part: self.spatial(self.spatial_norm(part)), 0, 6 * pixels * channels)
        x = self._over_time(x, frames, self.temporal_norm1, self.temporal1, temporal_width)
        x = self._from_text(x, step)
        x = self._over_time(x, frames, self.temporal_norm2, self.temporal2, temporal_width)
        rows = x.view(-1, channels) if x.is_contiguous() else x.flatten(0, 1)
        rows = add_residual(rows, lambda part: self.feed_forward(self.feed_forward_norm(part)), 0, 14 * channels)
        return rows.view(-1, pixels, channels)

    def _over_time(self, x: Tensor, frames: int, norm: nn.Module, attention: nn.Module, width: int) -> Tensor:
        video = x.unflatten(0, (-1, frames))
        return add_residual(video, lambda part: attention(norm(part)), 2, width).flatten(0, 1)

    def _from_text(self, x: Tensor, step: Step) -> Tensor:
        assert step.context is not None  # held by the network's `forward`
        # All frames of a video are queries on its one text: keys and values are never repeated.
        key, value = self.text.keys_values(step.context)
        queries = x.view(-1, step.frames * x.shape[1], x.shape[2])

        def attend(part: Tensor) -> Tensor:
            return self.text(self.text_norm(part), (key, value))

        width = queries.shape[0] * 5 * x.shape[2]
        return add_residual(queries, attend, 1, width).view_as(x)


class SpaceTimeTransformer(nn.Module):
    """GroupNorm over the clip, projection, transformer blocks, projection, residual."""

    def __init__(
        self,
        channels: int,
        config: TextToVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        self.norm = ClipNorm(channels, groups=config.norm_groups, eps=1e-6, **build)
        self.project_in = operations.Linear(channels, channels, **layer)
        self.blocks = nn.ModuleList(TransformerBlock(channels, config, **build) for _ in range(config.depth))
        self.project_out = operations.Linear(channels, channels, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        tokens = self.project_in(_tokens(self.norm(x, step.frames)))
        for block in self.blocks:
            tokens = block(tokens, step)
        return _image(_tokens(x) + self.project_out(tokens), x)


class _VideoUNet(nn.Module):
    """Input convolution, skeleton, output norm and convolution, and the time embedding."""

    def __init__(
        self,
        config: LatentVideoUNetConfig | TextToVideoUNetConfig,
        attention: type[nn.Module],
        *,
        scale_shift: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        operations: type[TorchOperations],
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = config.model_channels
        self.config = config
        self.time_embedding = Perceptron(width, 4 * width, **build)
        self.conv_in = operations.Conv2d(config.in_channels, width, 3, padding=1, **layer)
        blocks = Blocks(
            residual=lambda cin, cout: ResidualBlock(
                cin, cout, 4 * width, groups=config.norm_groups, scale_shift=scale_shift, **build
            ),
            attention=lambda channels, level: attention(channels, config, **build),
            downsample=lambda channels: Downsample(channels, **build),
            upsample=lambda channels: Upsample(channels, **build),
        )
        self.skeleton = Skeleton(width, config.channel_mult, config.num_res_blocks, config.attention_factors, blocks)
        self.norm_out = ClipNorm(width, groups=config.norm_groups, activation="silu", **build)
        self.conv_out = operations.Conv2d(width, config.out_channels, 3, padding=1, **layer)

    def _embed(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, 4 * width)."""
        return self.time_embedding(sinusoid(timesteps, self.config.model_channels).to(like.dtype))

    def _denoise(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        frames = x.shape[2]
        step = Step(frames, F.silu(embedding), context)
        h = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = self.skeleton(self.conv_in(h), step)
        h = self.conv_out(self.norm_out(h, frames))
        return h.unflatten(0, (-1, frames)).transpose(1, 2)


class LatentVideoUNet(_VideoUNet):
    """Denoiser of 3D-autoencoder latents, unconditional or mask-conditional (LVDM sections 3.2 and 3.3)."""

    # Peak of live values in a forward pass without gradients, per latent position and model channel (measured).
    activation_values = 24.0

    def __init__(
        self,
        config: LatentVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        super().__init__(config, SpaceTimeAttention, scale_shift=config.scale_shift, operations=operations, **layer)
        if config.noise_levels:
            self.noise_level = operations.Embedding(config.noise_levels, 4 * config.model_channels, **layer)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, noise_level: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in a video.

        Args:
            x: (B, C, T, H, W); in mask-conditional models the last channel is the mask (1 = given latent).
            timesteps: (B,), 0 to 999.
            context: ignored, there is no text.
            noise_level: (B,) integer diffusion step of the noise on the given latents, or None for none.

        Returns:
            (B, out_channels, T, H, W).
        """
        embedding = self._embed(timesteps, x)
        if noise_level is not None:
            embedding = embedding + self.noise_level(noise_level.long()).to(embedding.dtype)
        return self._denoise(x, embedding, None)


class TextToVideoUNet(_VideoUNet):
    """Denoiser of videos from text (LVDM section 4.4)."""

    config: TextToVideoUNetConfig
    # As above.
    activation_values = 20.0

    def __init__(
        self,
        config: TextToVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__(
            config, SpaceTimeTransformer, scale_shift=False, dtype=dtype, device=device, operations=operations
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """Predict the noise in a video: x (B, C, T, H, W), timesteps (B,), context (B, N, D) -> shape of x.

        Raises:
            ValueError: the context is missing or its width is not the configured one.
        """
        width = self.config.context_width
        if context is None or context.shape[-1] != width:
            found = "none" if context is None else f"width {context.shape[-1]}"
            raise ValueError(f"The text conditioning must have width {width}, found {found}: use this model's CLIP.")
        return self._denoise(x, self._embed(timesteps, x), context.to(x.dtype))


def _tokens(x: Tensor) -> Tensor:
    """(B*T, C, H, W) -> (B*T, P, C), no copy in channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """(B*T, P, C) -> (B*T, C, H, W) with the height and width of `like`."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
