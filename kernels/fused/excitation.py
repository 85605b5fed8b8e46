"""Excitations of a video by one multiplier, without leaving channels-last memory (VersVideo section 3.1).

Three masks excite the shifted input z_hat, and what they give is added: z_hat (1 + M_S) + z_hat (1 + M_C) +
z_hat (1 + M_M). M_S is of places, M_C and M_M are of frames, so that the sum is z_hat (3 + M_S + M_C + M_M), one pass.
The masks need sums of z_hat alone, and the shift is linear: sums are taken of the input, and then shifted.

Shapes: B videos, T frames, H, W, P = H*W places, C channels, D output channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.chunking import chunk_size


def shift(x: Tensor, taps: Tensor) -> Tensor:
    """Depthwise convolution of three frames: x (B, T, ..., C), taps (C, 3) -> x's shape; zeros outside the clip."""
    return over_time(x * taps[:, 0], x * taps[:, 1], x * taps[:, 2])


def over_time(before: Tensor, here: Tensor, after: Tensor) -> Tensor:
    """before[t - 1] + here[t] + after[t + 1], zeros outside the clip; all (B, T, ...)."""
    out = here.clone()
    out[:, 1:] += before[:, :-1]
    out[:, :-1] += after[:, 1:]
    return out


def window_sums(video: Tensor) -> Tensor:
    """Sums of what each tap of a 3x3 convolution with zero padding sees: (B, T, H, W, C) -> (B, T, 3, 3, C).

    The middle one is the sum of the frame. In float32 for half precision.
    """
    return _seen_by_taps(_seen_by_taps(video, 2), 3)


def _seen_by_taps(x: Tensor, dim: int) -> Tensor:
    """The first of three taps never reaches the last position of the axis, the third never the first one."""
    kind = torch.promote_types(x.dtype, torch.float32)
    total = x.sum(dim, dtype=kind)
    return torch.stack([total - x.select(dim, -1), total, total - x.select(dim, 0)], dim)


def shifted_mean(video: Tensor, taps: Tensor) -> Tensor:
    """Mean over the channels of the shifted video: (B, T, H, W, C), taps (C, 3) -> (B, T, H, W)."""
    return over_time(*(video @ (taps / len(taps))).unbind(-1))


def add_excited(
    y: Tensor,
    z: Tensor,
    taps: Tensor,
    places: Tensor,
    frames: Tensor,
    gate: Tensor,
    projection: Tensor | None = None,
) -> Tensor:
    """y + gate * project(shift(z) * (places + frames)).

    Args:
        y: (B, T, P, D); overwritten unless gradients are recorded.
        z: (B, T, P, C).
        taps: of the shift, (C, 3).
        places: multiplier of each place, (B, T, P).
        frames: multiplier of each channel of a frame, (B, T, C).
        gate: (D,).
        projection: (D, C), or None where D = C.

    Returns:
        (B, T, P, D).
    """
    if torch.is_grad_enabled():
        return add_excited_plain(y, z, taps, places, frames, gate, projection)
    # The gate is a factor of what follows or goes before it.
    matrix = None if projection is None else projection * gate[:, None]
    before, here, after = (taps if matrix is not None else taps * gate[:, None]).unbind(1)
    count = chunk_size(z.shape[1], 2 * z[:, 0].numel(), z)
    for start in range(0, z.shape[1], count):
        now = slice(start, start + count)
        part = z[:, now] * here
        # The first frame of the clip has none before it, the last one none behind it.
        early, late = z[:, max(start - 1, 0) : start - 1 + part.shape[1]], z[:, start + 1 : start + 1 + part.shape[1]]
        part[:, part.shape[1] - early.shape[1] :].addcmul_(early, before)
        part[:, : late.shape[1]].addcmul_(late, after)
        factor = places[:, now, :, None] + frames[:, now, None]
        if matrix is None:
            y[:, now].addcmul_(part, factor)
        else:
            y[:, now] += F.linear(part.mul_(factor), matrix)
    return y


def add_excited_plain(
    y: Tensor,
    z: Tensor,
    taps: Tensor,
    places: Tensor,
    frames: Tensor,
    gate: Tensor,
    projection: Tensor | None = None,
) -> Tensor:
    """The definition of `add_excited`: same arguments and result."""
    excited = shift(z, taps) * (places[..., None] + frames[:, :, None])
    return y + gate * (excited if projection is None else F.linear(excited, projection))
