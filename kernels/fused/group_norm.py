"""GroupNorm over whole clips, with an optional scale, shift and activation, without leaving channels-last memory.

B videos of T frames are stored as (B*T, C, H, W). The plain form defines the result and is differentiable. The fast
form needs one pass for the mean, one for the variance and one to apply; torch's own clip-wide kernel reduces with one
thread block per group on GPUs, and loses digits on channels-last CPU tensors.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu"]
"""What may stand behind a norm; GELU is the exact one."""
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
_IN_PLACE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": partial(F.silu, inplace=True),
    "gelu": torch.ops.aten.gelu_,
}

# Below this many elements torch's kernel is as exact and costs fewer calls.
_SMALL = 1 << 20
# Values of a float32 copy that is made for statistics of half-precision tensors.
_COPY_VALUES = 1 << 24


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    frames: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """activation(GroupNorm(x) * (1 + scale) + shift), statistics over `frames` consecutive frames together.

    x (B*frames, C, H, W); weight, bias (C,); scale, shift (B, C) or None -> (B*frames, C, H, W), channels-last.
    """
    exact = x.numel() < _SMALL and x.device.type == "cpu"
    given = [part for part in (x, weight, bias, scale, shift) if part is not None]
    if exact or (torch.is_grad_enabled() and any(part.requires_grad for part in given)):
        return group_norm_plain(
            x, groups, weight, bias, eps, frames=frames, scale=scale, shift=shift, activation=activation
        )
    videos, channels = x.shape[0] // frames, x.shape[1]
    pixels = x.permute(0, 2, 3, 1).reshape(videos, frames, -1, channels)
    mean, variance = _statistics(pixels, groups)
    factor = weight.float() * _per_channel((variance + eps).rsqrt(), channels)
    offset = bias.float() - _per_channel(mean, channels) * factor
    if scale is not None and shift is not None:
        factor, offset = factor * (1 + scale.float()), offset * (1 + scale.float()) + shift.float()
    # Computed in float32 whatever x is, rounded once.
    out = torch.addcmul(offset[:, None, None], pixels, factor[:, None, None], out=torch.empty_like(pixels))
    if activation:
        _IN_PLACE[activation](out)
    return out.view(x.shape[0], *x.shape[2:], channels).permute(0, 3, 1, 2)


def group_norm_plain(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    frames: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """The definition of `group_norm`: same arguments and result."""
    clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
    out = F.group_norm(clip.contiguous(), groups, weight, bias, eps)
    if scale is not None and shift is not None:
        out = torch.addcmul(shift[..., None, None, None], out, 1 + scale[..., None, None, None])
    if activation:
        out = ACTIVATIONS[activation](out)
    out = out.transpose(1, 2).flatten(0, 1)
    return out.contiguous(memory_format=torch.channels_last)


def _statistics(pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, groups) in float32 of pixels (B, T, N, C)."""
    if pixels.device.type == "cpu":
        mean = pixels.mean((1, 2), dtype=torch.float32).unflatten(-1, (groups, -1)).mean(-1)
        centre = _per_channel(mean, pixels.shape[-1])[:, None]
        square = torch.stack([(frame - centre).square_().mean(1) for frame in pixels.unbind(1)]).mean(0)
        variance = square.unflatten(-1, (groups, -1)).mean(-1)
        return mean, variance
    # Split reduction: statistics per frame keep many thread blocks busy, then the frames are merged.
    count = max(1, pixels.shape[1] * _COPY_VALUES // pixels.numel())
    moments = [
        torch.var_mean(part.unflatten(-1, (groups, -1)).float(), dim=(2, 4), correction=0)
        for part in pixels.split(count, 1)
    ]
    variances, means = (torch.cat(part, 1) for part in zip(*moments, strict=True))
    mean = means.mean(1)
    return mean, variances.mean(1) + (means - mean[:, None]).square().mean(1)


def _per_channel(groupwise: Tensor, channels: int) -> Tensor:
    return groupwise.repeat_interleave(channels // groupwise.shape[-1], dim=-1)
