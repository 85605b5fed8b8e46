"""LVDM's denoisers as the released models are composed, of plain `torch.nn` layers; modules carry the released names.

Shapes: B videos, C channels, T frames, H, W, N text tokens, D width of a head. Between layers a video is
(B, C, T, H, W); attention permutes it into batches of sequences. Spatial attention uses torch's fused kernel unless
told otherwise.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time embedding is added, or scales and shifts, between."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, in_channels), nn.SiLU(), frame_conv(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (2 if scale_shift else 1) * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels), nn.SiLU(), nn.Dropout(0.0), frame_conv(out_channels, out_channels)
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else frame_conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, T, H, W), embedding (B, E) -> (B, C', T, H, W)."""
        h = self.in_layers(x)
        time = self.emb_layers(embedding)[..., None, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(x) + h


class RelativePosition(nn.Module):
    """Table of 2M+1 vectors; row M is distance zero."""

    def __init__(self, width: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.embeddings_table = nn.Parameter(torch.empty(2 * max_distance + 1, width))
        nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (T, T) -> vectors (T, T, D)."""
        return self.embeddings_table[distance.clamp(-self.max_distance, self.max_distance) + self.max_distance]


class AttentionBlock(nn.Module):
    """Spatial, then temporal attention with 1x1 convolutions; the key positions have the transposed form."""

    def __init__(self, channels: int, config: LatentVideoUNetConfig, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = config.num_heads, fused
        width = channels // config.num_heads
        self.norm_s, self.norm_t = nn.GroupNorm(32, channels), nn.GroupNorm(32, channels)
        self.qkv_s, self.qkv_t = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, 3 * channels, 1)
        self.relative_position_k = RelativePosition(width, config.temporal_length)
        self.relative_position_v = RelativePosition(width, config.temporal_length)
        self.proj_out_s, self.proj_out_t = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> same shape."""
        videos, channels, count, height, width = x.shape
        frames = x.transpose(1, 2).reshape(videos * count, channels, height * width)
        frames = frames + self.proj_out_s(self._over_space(self.qkv_s(self.norm_s(frames))))
        pixels = frames.unflatten(0, (videos, count)).permute(0, 3, 2, 1).reshape(-1, channels, count)
        pixels = pixels + self.proj_out_t(self._over_time(self.qkv_t(self.norm_t(pixels))))
        return pixels.view(videos, height, width, channels, count).permute(0, 3, 4, 1, 2).contiguous()

    def _over_space(self, qkv: Tensor) -> Tensor:
        # Contiguous, or torch's fused kernel refuses them.
        query, key, value = (part.transpose(-1, -2).contiguous() for part in self._heads(qkv))
        out = attend(query, key, value, self.fused)
        return out.transpose(-1, -2).reshape(qkv.shape[0], -1, qkv.shape[2])

    def _over_time(self, qkv: Tensor) -> Tensor:
        query, key, value = self._heads(qkv)
        scale = query.shape[2] ** -0.25
        query, key = query * scale, key * scale
        distance = distances(qkv.shape[2], qkv.device)
        logits = torch.einsum("bhdi,bhdj->bhij", query, key)
        logits = logits + torch.einsum("bhdj,ijd->bhij", query, self.relative_position_k(-distance))
        weights = logits.float().softmax(dim=-1).to(value.dtype)
        out = torch.einsum("bhij,bhdj->bhdi", weights, value)
        out = out + torch.einsum("bhij,ijd->bhdi", weights, self.relative_position_v(distance))
        return out.reshape(qkv.shape[0], -1, qkv.shape[2])

    def _heads(self, qkv: Tensor) -> list[Tensor]:
        return [part.unflatten(1, (self.heads, -1)) for part in qkv.chunk(3, dim=1)]


class CrossAttention(nn.Module):
    """Attention with three separate projections, on its own tokens or on a context."""

    def __init__(self, channels: int, context_width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_width, channels, bias=False)
        self.to_v = nn.Linear(context_width, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, C), context (B, M, D) -> (B, N, C)."""
        context = x if context is None else context
        parts = (self.to_q(x), self.to_k(context), self.to_v(context))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.to_out(attend(query, key, value, self.fused).transpose(1, 2).flatten(2))


class TemporalCrossAttention(nn.Module):
    """Self-attention over frames with relative positions in the usual form; heads are folded into the batch."""

    def __init__(self, channels: int, heads: int, max_distance: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.relative_position_k = RelativePosition(channels // heads, max_distance)
        self.relative_position_v = RelativePosition(channels // heads, max_distance)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """x (B*H*W, T, C) -> same shape."""
        parts = (self.to_q(x), self.to_k(x), self.to_v(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1) for part in parts)
        distance = distances(x.shape[1], x.device)
        logits = torch.einsum("bid,bjd->bij", query, key)
        logits = logits + torch.einsum("bid,ijd->bij", query, self.relative_position_k(distance))
        weights = (logits * query.shape[-1] ** -0.5).softmax(dim=-1)
        out = torch.einsum("bij,bjd->bid", weights, value)
        out = out + torch.einsum("bij,ijd->bid", weights, self.relative_position_v(distance))
        return self.to_out(out.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Projection to two halves: the first times the exact GELU of the second."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., width)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class GatedFeedForward(nn.Module):
    """GEGLU and projection, of four times the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.net = nn.Sequential(GEGLU(channels, inner), nn.Dropout(0.0), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> same shape."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Spatial self-, temporal self-, spatial cross-, temporal self-attention, feed-forward."""

    def __init__(self, channels: int, config: TextToVideoUNetConfig, fused: bool) -> None:
        super().__init__()
        heads = config.num_heads
        self.attn1 = CrossAttention(channels, channels, heads, fused)
        self.attn1_tmp = TemporalCrossAttention(channels, heads, config.temporal_length)
        self.attn2 = CrossAttention(channels, config.context_width, heads, fused)
        self.attn2_tmp = TemporalCrossAttention(channels, heads, config.temporal_length)
        self.ff = GatedFeedForward(channels)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.norm4, self.norm5 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor, frames: int) -> Tensor:
        """x (B*T, H*W, C), context (B*T, N, D') -> shape of x."""
        x = self.attn1(self.norm1(x)) + x
        x = self._over_time(self.attn1_tmp, self.norm4, x, frames)
        x = self.attn2(self.norm2(x), context) + x
        x = self._over_time(self.attn2_tmp, self.norm5, x, frames)
        return self.ff(self.norm3(x)) + x

    @staticmethod
    def _over_time(attention: nn.Module, norm: nn.Module, x: Tensor, frames: int) -> Tensor:
        _, pixels, channels = x.shape
        x = x.view(-1, frames, pixels, channels).transpose(1, 2).reshape(-1, frames, channels)
        x = attention(norm(x)) + x
        return x.view(-1, pixels, frames, channels).transpose(1, 2).reshape(-1, pixels, channels)


class SpatialTemporalTransformer(nn.Module):
    """GroupNorm over the clip, 1x1x1 convolution, blocks, 1x1x1 convolution, residual."""

    def __init__(self, channels: int, config: TextToVideoUNetConfig, fused: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = frame_conv(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, config, fused) for _ in range(config.depth)
        )
        self.proj_out = frame_conv(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, T, H, W), context (B, N, D') -> shape of x."""
        videos, channels, frames, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 4, 1).reshape(videos * frames, height * width, channels)
        context = context.repeat_interleave(frames, dim=0)
        for block in self.transformer_blocks:
            h = block(h, context, frames)
        h = h.view(videos, frames, height, width, channels).permute(0, 4, 1, 2, 3).contiguous()
        return self.proj_out(h) + x


class Downsample(nn.Module):
    """Strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = frame_conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C, T, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour and convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = frame_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> (B, C, T, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class Block(nn.ModuleList):
    """Layers one after the other; each gets what it needs besides the video."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        """x (B, C, T, H, W), embedding (B, E), context (B, N, D') -> (B, C', T, H', W')."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTemporalTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Either denoiser: UNet-A without a context width in its configuration, UNet-B with one."""

    def __init__(self, config: LatentVideoUNetConfig | TextToVideoUNetConfig, *, fused: bool = True) -> None:
        super().__init__()
        self.config, self.fused = config, fused
        base, widths = config.model_channels, [config.model_channels * factor for factor in config.channel_mult]
        self.time_embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        if isinstance(config, LatentVideoUNetConfig) and config.noise_levels:
            self.label_emb = nn.Embedding(config.noise_levels, 4 * base)
        down, skips = [Block([frame_conv(config.in_channels, base)])], [base]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                down.append(Block([self._res(skips[-1], width), *self._attention(level, width)]))
                skips.append(width)
            if level + 1 < len(widths):
                down.append(Block([Downsample(width)]))
                skips.append(width)
        current = widths[-1]
        middle = [self._res(current, current), self._attention_layer(current), self._res(current, current)]
        up = []
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.num_res_blocks + 1):
                layers = [self._res(current + skips.pop(), width), *self._attention(level, width)]
                current = width
                if level and index == config.num_res_blocks:
                    layers.append(Upsample(width))
                up.append(Block(layers))
        self.input_blocks, self.middle_block, self.output_blocks = nn.ModuleList(down), Block(middle), nn.ModuleList(up)
        self.out = nn.Sequential(nn.GroupNorm(32, base), nn.SiLU(), frame_conv(base, config.out_channels))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, noise_level: Tensor | None = None
    ) -> Tensor:
        """x (B, C, T, H, W), timesteps (B,), context (B, N, D), noise_level (B,) -> (B, C', T, H, W)."""
        embedding = self.time_embed(sinusoid(timesteps, self.config.model_channels).to(x.dtype))
        if noise_level is not None:
            embedding = embedding + self.label_emb(noise_level)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding, context)
            skips.append(x)
        x = self.middle_block(x, embedding, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context)
        return self.out(x)

    def _res(self, in_channels: int, out_channels: int) -> ResBlock:
        scale_shift = isinstance(self.config, LatentVideoUNetConfig) and self.config.scale_shift
        return ResBlock(in_channels, out_channels, 4 * self.config.model_channels, scale_shift)

    def _attention(self, level: int, channels: int) -> list[nn.Module]:
        return [self._attention_layer(channels)] if 2**level in self.config.attention_factors else []

    def _attention_layer(self, channels: int) -> nn.Module:
        if isinstance(self.config, LatentVideoUNetConfig):
            return AttentionBlock(channels, self.config, self.fused)
        return SpatialTemporalTransformer(channels, self.config, self.fused)


def frame_conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv3d:
    """3D convolution over single frames: kernel (1, k, k), zero padding."""
    pad = kernel // 2
    return nn.Conv3d(in_channels, out_channels, (1, kernel, kernel), stride=(1, stride, stride), padding=(0, pad, pad))


def attend(query: Tensor, key: Tensor, value: Tensor, fused: bool) -> Tensor:
    """Attention (B, heads, N, D), (B, heads, M, D) twice -> (B, heads, N, D): torch's kernel or logits and softmax."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value)
    scale = query.shape[-1] ** -0.25
    logits = (query * scale) @ (key * scale).transpose(-1, -2)
    return logits.float().softmax(dim=-1).to(value.dtype) @ value


def distances(count: int, device: torch.device) -> Tensor:
    """Distance j - i of frames (T, T)."""
    position = torch.arange(count, device=device)
    return position[None, :] - position[:, None]


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps (B,) -> (B, width): cosines, then sines of t * 10000^(-2i/width)."""
    exponents = torch.arange(width // 2, dtype=torch.float32, device=timesteps.device) / (width // 2)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
