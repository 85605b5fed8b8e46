"""HiGen: Hierarchical Spatio-temporal Decoupling for Text-to-Video Generation (arXiv 2312.04483).

One denoiser for two modes. With a single frame all temporal layers are left out (spatial reasoning); with several it
is steered by a clean prior latent, a motion factor per step and a row of appearance similarities per frame (temporal
reasoning). Without these cues the same layout is ModelScopeT2V (arXiv 2308.06571).

Shapes: B videos, T frames, C channels, H, W latent size, P = H*W pixels, N text tokens, D context width, E embedding.
Between layers a video is (B*T, C, H, W) in channels-last memory, which is the memory of tokens (B, T, P, C).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import CrossAttention, FeedForward
from ..layers.embeddings import Perceptron, sinusoid
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from ..layers.resnet import ClipNorm, Downsample, ResidualBlock, Step, Upsample
from ..layers.temporal import TemporalConvolution
from ..layers.transformers import SpatialBlock, TemporalBlock, Transformer
from .skeleton import Blocks, Skeleton

SIMILARITIES = 32
"""Length of a row of appearance similarities: a linear layer of the released model reads it."""


@dataclass(frozen=True)
class SpaceTimeUNetConfig:
    """Numbers of the layout that ModelScopeT2V and HiGen share.

    Attributes:
        in_channels, out_channels: latent channels.
        model_channels: width of the first level; `channel_mult` multiplies it per level.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors at which transformers are used.
        head_width: channels of a head.
        stem_heads: heads of the first temporal transformer, whatever the width of the first level.
        context_width: width of the text tokens that the transformers see.
        norm_groups: groups of every GroupNorm.
        heads: in each level, of whatever width; none where `head_width` says how many there are.
        clip_groups: groups of the norms of temporal convolutions and of the first temporal transformer, where they
            are not `norm_groups`.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[float, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_factors: tuple[int, ...] = (1, 2, 4)
    head_width: int = 64
    stem_heads: int = 8
    context_width: int = 1024
    norm_groups: int = 32
    heads: tuple[int, ...] = ()
    clip_groups: int | None = None

    def heads_in(self, level: int, channels: int) -> int:
        """Heads of every attention of a level, which is so wide."""
        return self.heads[level] if self.heads else channels // self.head_width


@dataclass(frozen=True)
class HiGenUNetConfig(SpaceTimeUNetConfig):
    """Numbers of HiGen.

    Attributes:
        text_width: width of the text encoder's tokens, which are resampled.
        resampled_tokens: how many tokens the text becomes.
        resampler_depth: transformer blocks of the resampler.
        resampler_heads: their heads.
    """

    text_width: int = 1024
    resampled_tokens: int = 16
    resampler_depth: int = 2
    resampler_heads: int = 8


class SpaceTimeResidual(nn.Module):
    """A residual block on every frame, then temporal convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: SpaceTimeUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        width, groups = 4 * config.model_channels, config.norm_groups
        self.spatial = ResidualBlock(in_channels, out_channels, width, groups=groups, **build)
        self.temporal = TemporalConvolution(out_channels, groups=config.clip_groups or groups, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W), embedding per frame -> (B*T, C', H, W)."""
        x = self.spatial(x, replace(step, frames=1))
        return self.temporal(x, step.frames) if step.over_time else x


class SpaceTimeTransformers(nn.Module):
    """A transformer within frames, then one over time."""

    def __init__(
        self,
        channels: int,
        heads: int,
        config: SpaceTimeUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        groups = config.norm_groups
        block = SpatialBlock(channels, heads, config.context_width, **build)
        self.spatial = Transformer(channels, channels, block, clip_norm=False, groups=groups, **build)
        over_time = TemporalBlock(channels, heads, **build)
        self.temporal = Transformer(channels, channels, over_time, clip_norm=True, groups=groups, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W) -> same shape."""
        x = self.spatial(x, step)
        return self.temporal(x, step) if step.over_time else x


class TextResampler(nn.Module):
    """Learned tokens that read the text (HiGen's context embedding): text (B, N, text width) -> (B, tokens, D).

    Both attentions of a block read the text; the learned tokens never see each other.
    """

    def __init__(
        self,
        config: HiGenUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = 4 * config.model_channels
        self.operations = operations
        self.project_in = operations.Linear(config.text_width, width, **layer)
        self.tokens = operations.Embedding(config.resampled_tokens, width, **layer)
        self.blocks = nn.ModuleList(
            ResamplerBlock(width, config.resampler_heads, **build) for _ in range(config.resampler_depth)
        )
        self.project_out = operations.Linear(width, config.context_width, **layer)

    def forward(self, text: Tensor) -> Tensor:
        """Text (B, N, text width) -> (B, tokens, D)."""
        text = self.project_in(text)
        rows = torch.arange(self.tokens.num_embeddings, device=text.device)
        tokens = self.tokens(rows).to(text.dtype).expand(text.shape[0], -1, -1)
        for block in self.blocks:
            tokens = block(tokens, text)
        return self.project_out(tokens)


class ResamplerBlock(nn.Module):
    """Attention on the text twice, feed-forward, each pre-norm residual."""

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
        build: BuildKeywords = {**layer, "operations": operations}
        self.norm1 = operations.LayerNorm(width, **layer)
        self.text1 = CrossAttention(width, width, heads, **build)
        self.norm2 = operations.LayerNorm(width, **layer)
        self.text2 = CrossAttention(width, width, heads, **build)
        self.feed_forward_norm = operations.LayerNorm(width, **layer)
        self.feed_forward = FeedForward(width, **build)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, M, width), text (B, N, width) -> shape of the tokens."""
        tokens = tokens + self.text1(self.norm1(tokens), self.text1.keys_values(text))
        tokens = tokens + self.text2(self.norm2(tokens), self.text2.keys_values(text))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class SpaceTimeUNet(nn.Module):
    """ModelScopeT2V: the denoiser without HiGen's cues; its temporal layers act on single frames too."""

    # Peak of live values in a forward pass without gradients, per latent position and model channel (measured).
    activation_values = 20.0
    # A single frame is a picture, which these models make too.
    fewest_frames = 1

    def __init__(
        self,
        config: SpaceTimeUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = config.model_channels
        self.config = config
        self.time_embedding = Perceptron(width, 4 * width, **build)
        self.conv_in = operations.Conv2d(config.in_channels, width, 3, padding=1, **layer)
        inner, groups = config.stem_heads * config.head_width, config.clip_groups or config.norm_groups
        first = TemporalBlock(inner, config.stem_heads, **build)
        self.temporal_in = Transformer(width, inner, first, clip_norm=True, groups=groups, **build)
        blocks = Blocks(
            residual=lambda cin, cout: SpaceTimeResidual(cin, cout, config, **build),
            attention=lambda channels, level: SpaceTimeTransformers(
                channels, config.heads_in(level, channels), config, **build
            ),
            downsample=lambda channels: Downsample(channels, **build),
            upsample=lambda channels: Upsample(channels, **build),
        )
        self.skeleton = Skeleton(width, config.channel_mult, config.num_res_blocks, config.attention_factors, blocks)
        self.norm_out = ClipNorm(width, groups=config.norm_groups, activation="silu", **build)
        self.conv_out = operations.Conv2d(width, config.out_channels, 3, padding=1, **layer)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """Predict noise or velocity: x (B, C, T, H, W), timesteps (B,), context (B, N, D) -> shape of x.

        Raises:
            ValueError: the context is missing or its width is not the configured one.
        """
        context = _text(context, self.config.context_width, x)
        embedding = self._embed(timesteps, x).repeat_interleave(x.shape[2], dim=0)
        return self._denoise(self.conv_in(_frames(x)), Step(x.shape[2], F.silu(embedding), context))

    def _embed(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, 4 * width)."""
        return self.time_embedding(sinusoid(timesteps, self.config.model_channels).to(like.dtype))

    def _denoise(self, h: Tensor, step: Step) -> Tensor:
        if step.over_time:
            h = self.temporal_in(h, step)
        h = self.skeleton(h, step)
        h = self.conv_out(self.norm_out(h, 1))
        return h.unflatten(0, (-1, step.frames)).transpose(1, 2)


class HiGenUNet(SpaceTimeUNet):
    """HiGen's denoiser; one frame is spatial reasoning, several are temporal reasoning (section 3.2)."""

    config: HiGenUNetConfig
    # Without them it knows single frames alone.
    video_cues = ("prior", "motion", "appearance")

    def __init__(
        self,
        config: HiGenUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        super().__init__(config, operations=operations, **layer)
        width = config.model_channels
        self.prior_in = operations.Conv2d(config.in_channels, width, 3, padding=1, **layer)
        self.motion_embedding = Perceptron(width, 4 * width, operations=operations, **layer)
        self.appearance_embedding = Perceptron(SIMILARITIES, 4 * width, operations=operations, **layer)
        self.resampler = TextResampler(config, operations=operations, **layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        prior: Tensor | None = None,
        motion: Tensor | None = None,
        appearance: Tensor | None = None,
        text_tokens: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of a video.

        Args:
            x: (B, C, T, H, W).
            timesteps: (B,), 0 to 999.
            context: (B, N, text width); not needed beside `text_tokens`.
            prior: clean latent (B, C, H, W); zeros without one, as in spatial reasoning.
            motion: factors (B, T-1), one per step from frame to frame, or (B, T); zeros without them.
            appearance: similarity of each frame to the 32 frames of a clip, (B, T, 32); ones without it.
            text_tokens: (B, tokens, D) from `encode_text`; the same at every timestep.

        Returns:
            Shape of x.

        Raises:
            ValueError: a cue's shape does not belong to x, or the context is missing or of another width.
        """
        frames = x.shape[2]
        if text_tokens is None:
            text_tokens = self.encode_text(_text(context, self.config.text_width, x))["text_tokens"]
        embedding = self._embed(timesteps, x)[:, None]
        embedding = embedding + self.motion_embedding(self._motion_features(x, motion))
        embedding = embedding + self.appearance_embedding(_appearance(x, appearance))
        prior = x.new_zeros(x.shape[0], x.shape[1], *x.shape[3:]) if prior is None else prior.to(x.dtype)
        if prior.shape != x[:, :, 0].shape:
            raise ValueError(f"The spatial prior has shape {tuple(prior.shape)}, expected {tuple(x[:, :, 0].shape)}.")
        stem = self.conv_in(_frames(x)) + self.prior_in(prior).repeat_interleave(frames, dim=0)
        step = Step(frames, F.silu(embedding.flatten(0, 1)), text_tokens.to(x.dtype), over_time=frames > 1)
        return self._denoise(stem, step)

    def encode_text(self, text: Tensor) -> dict[str, Tensor]:
        """All that the network computes of a text (B, N, text width) alone, as a keyword argument of `forward`."""
        return {"text_tokens": self.resampler(text)}

    def _motion_features(self, x: Tensor, motion: Tensor | None) -> Tensor:
        """Sinusoids of the factors, (B, T, width); those of T-1 steps are stretched to T frames (Eq. 2, released)."""
        batch, frames = x.shape[0], x.shape[2]
        motion = x.new_zeros(batch, frames) if motion is None else motion
        if motion.ndim != 2 or motion.shape[0] != batch or motion.shape[1] not in (frames, max(1, frames - 1)):
            expected = f"({batch}, {max(1, frames - 1)}) or ({batch}, {frames})"
            raise ValueError(f"The motion factors have shape {tuple(motion.shape)}, expected {expected}.")
        features = sinusoid(motion.flatten(), self.config.model_channels).unflatten(0, motion.shape)
        if motion.shape[1] != frames:
            features = F.interpolate(features.transpose(1, 2), frames, mode="linear").transpose(1, 2)
        return features.to(x.dtype)


def _appearance(x: Tensor, appearance: Tensor | None) -> Tensor:
    """Similarity rows (B, T, 32)."""
    expected = (x.shape[0], x.shape[2], SIMILARITIES)
    if appearance is None:
        return x.new_ones(expected)
    if appearance.shape != expected:
        raise ValueError(f"The appearance similarities have shape {tuple(appearance.shape)}, expected {expected}.")
    return appearance.to(x.dtype)


def _frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W) in channels-last memory."""
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _text(context: Tensor | None, width: int, like: Tensor) -> Tensor:
    if context is None or context.shape[-1] != width:
        found = "none" if context is None else f"width {context.shape[-1]}"
        raise ValueError(f"The text conditioning must have width {width}, found {found}: use this model's CLIP.")
    return context.to(like.dtype)
