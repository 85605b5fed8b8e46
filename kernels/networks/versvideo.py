"""VersVideo: Leveraging Enhanced Temporal Diffusion Models for Versatile Video Generation (ICLR 2024).

The U-Net of Stable Diffusion, in which every 3x3 convolution of a residual block is a multi-excitation convolution
(section 3.1), and a transformer over time stands behind every one within frames; their feed-forward layers are trained
as mixtures of experts that are merged for use (section 3.2). The parts are `layers.excitation` and `layers.experts`.

Shapes: B videos, T frames, C channels, H, W latent size, P = H*W, N text tokens, D context width, E embedding.
Between layers a video is (B*T, C, H, W) in channels-last memory, which is the memory of tokens (B, T, P, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import FeedForward
from ..layers.embeddings import Perceptron, sinusoid
from ..layers.excitation import MultiExcitation
from ..layers.experts import merge_experts
from ..layers.operations import BuildKeywords, LayerKeywords, TorchOperations
from ..layers.resnet import ClipNorm, Downsample, Step, Upsample
from ..layers.transformers import BlockChain, SpatialBlock, TemporalBlock, Transformer
from .skeleton import Blocks, Skeleton

GROUPS = 32
"""Of every GroupNorm; all take the statistics of single frames, as the image model's do."""


@dataclass(frozen=True)
class VersVideoUNetConfig:
    """Numbers of the denoiser; the defaults are those of VersVideo-H, merged. VersVideo-L has 128 model channels.

    Attributes:
        in_channels, out_channels: latent channels.
        model_channels: width of the first level; `channel_mult` multiplies it per level.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors at which transformers are used; the middle has them too.
        heads: of every attention, whatever its width.
        context_width: width of the text tokens.
        depth: blocks of every transformer.
        spatial_experts, temporal_experts: feed-forward layers that tokens are dealt to in training, 32 and 4 in the
            paper; 1 when they are merged.
        depthwise_motion: whether the 3x3 convolution of the motion excitation keeps channels apart.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[float, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_factors: tuple[int, ...] = (1, 2, 4)
    heads: int = 8
    context_width: int = 768
    depth: int = 2
    spatial_experts: int = 1
    temporal_experts: int = 1
    depthwise_motion: bool = True


class ExcitedResidual(nn.Module):
    """Norm, SiLU, multi-excitation convolution, twice, with the time embedding added between."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: VersVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        depthwise = config.depthwise_motion
        self.norm1 = ClipNorm(in_channels, groups=GROUPS, activation="silu", **build)
        self.conv1 = MultiExcitation(in_channels, out_channels, depthwise_motion=depthwise, **build)
        self.time = operations.Linear(4 * config.model_channels, out_channels, **layer)
        self.norm2 = ClipNorm(out_channels, groups=GROUPS, activation="silu", **build)
        self.conv2 = MultiExcitation(out_channels, out_channels, depthwise_motion=depthwise, **build)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else operations.Conv2d(in_channels, out_channels, 1, **layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C_in, H, W), embedding (B, E) -> (B*T, C_out, H, W)."""
        time = self.time(step.embedding).repeat_interleave(step.frames, dim=0)[:, :, None, None]
        h = self.conv1(self.norm1(x, 1), step.frames)
        h = self.conv2(self.norm2(h + time, 1), step.frames)
        return self.skip(x) + h


class SpaceTimeAttention(nn.Module):
    """A transformer within frames that reads the text, then one over time that does not (section 3.2)."""

    def __init__(
        self,
        channels: int,
        config: VersVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        heads, context = config.heads, config.context_width
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided, heads: {heads}")
        within = BlockChain(
            SpatialBlock(channels, heads, context, experts=config.spatial_experts, **build) for _ in range(config.depth)
        )
        over_time = BlockChain(
            TemporalBlock(channels, heads, experts=config.temporal_experts, **build) for _ in range(config.depth)
        )
        self.spatial = Transformer(channels, channels, within, clip_norm=False, groups=GROUPS, **build)
        self.temporal = Transformer(channels, channels, over_time, clip_norm=False, groups=GROUPS, **build)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B*T, C, H, W), context (B, N, D) -> (B*T, C, H, W)."""
        return self.temporal(self.spatial(x, step), step)

    @torch.no_grad()
    def start_as_image_layer(self) -> None:
        """Leave only what an image model has: nothing over time, and of the transformer in frames the first block."""
        silent: list[nn.Module] = [self.temporal.project_out]
        blocks: list[SpatialBlock] = list(self.spatial.block.blocks)  # type: ignore[arg-type]
        for block in blocks[1:]:
            silent += [block.spatial.out, block.text.out]
            silent += [layer.out for layer in block.feed_forward.modules() if isinstance(layer, FeedForward)]
        for layer in silent:
            for parameter in layer.parameters():
                parameter.zero_()


def unet_blocks(config: VersVideoUNetConfig, build: BuildKeywords) -> Blocks:
    """Makers of the parts of the U-Net, and of copies of its encoder."""
    return Blocks(
        residual=lambda cin, cout: ExcitedResidual(cin, cout, config, **build),
        attention=lambda channels, level: SpaceTimeAttention(channels, config, **build),
        downsample=lambda channels: Downsample(channels, **build),
        upsample=lambda channels: Upsample(channels, **build),
    )


def first_step(
    config: VersVideoUNetConfig, time_embedding: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor | None
) -> Step:
    """What the layers of a call share: x (B, C, T, H, W), timesteps (B,), context (B, N, D).

    Raises:
        ValueError: the context is missing or its width is not the configured one.
    """
    width = config.context_width
    if context is None or context.shape[-1] != width:
        found = "none" if context is None else f"width {context.shape[-1]}"
        raise ValueError(f"The text conditioning must have width {width}, found {found}: use this model's CLIP.")
    embedding = time_embedding(sinusoid(timesteps, config.model_channels).to(x.dtype))
    return Step(x.shape[2], F.silu(embedding), context.to(x.dtype))


def as_rows(x: Tensor) -> Tensor:
    """Videos (B, C, T, H, W) -> frames (B*T, C, H, W) in channels-last memory."""
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class VersVideoUNet(nn.Module):
    """The denoiser of VersVideo; it predicts velocities. Single frames are pictures, which it is trained on too."""

    # Peak of live values in a forward pass without gradients, per latent position and model channel (measured).
    activation_values = 21.0
    fewest_frames = 1

    def __init__(
        self,
        config: VersVideoUNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        layer: LayerKeywords = {"dtype": dtype, "device": device}
        build: BuildKeywords = {**layer, "operations": operations}
        width = config.model_channels
        self.config, self.operations = config, operations
        self.time_embedding = Perceptron(width, 4 * width, **build)
        self.conv_in = operations.Conv2d(config.in_channels, width, 3, padding=1, **layer)
        blocks = unet_blocks(config, build)
        self.skeleton = Skeleton(width, config.channel_mult, config.num_res_blocks, config.attention_factors, blocks)
        self.norm_out = ClipNorm(width, groups=GROUPS, activation="silu", **build)
        self.conv_out = operations.Conv2d(width, config.out_channels, 3, padding=1, **layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Predict the velocity: x (B, C, T, H, W), timesteps (B,), context (B, N, D) -> shape of x.

        `control` is what a ControlNet adds to skips and middle, (B*T, C', H', W') each.

        Raises:
            ValueError: the context is missing or its width is not the configured one.
        """
        frames = x.shape[2]
        step = first_step(self.config, self.time_embedding, x, timesteps, context)
        h = self.skeleton(self.conv_in(as_rows(x)), step, control)
        h = self.conv_out(self.norm_out(h, 1))
        return h.unflatten(0, (-1, frames)).transpose(1, 2)

    def merged(self) -> "VersVideoUNet":
        """The network of use: every layer of experts is one layer with the mean of their weights."""
        config = replace(self.config, spatial_experts=1, temporal_experts=1)
        with torch.device("meta"):
            network = VersVideoUNet(config)
        network.load_state_dict(merge_experts(self.state_dict()), assign=True)
        return network.requires_grad_(False).train(self.training)

    def start_as_image_model(self) -> None:
        """Set what an image model does not have so that frames are those of the image model whose layers these are.

        Temporal convolutions pass their frame on, gates are zero, and so are the outputs of transformers over time
        and of the blocks that the image model's transformers lack (their first blocks are the image model's).
        """
        for module in self.modules():
            if isinstance(module, MultiExcitation | SpaceTimeAttention):
                module.start_as_image_layer()
