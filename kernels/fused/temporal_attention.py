"""Attention along time for every pixel, on the memory order of a channels-last video.

Shapes: B videos, T frames, P pixels, H heads of width D. Positions enter as learned tables of vectors per pair of
frames. Sequences are so short that products of matrices per pixel and head beat every attention kernel.
"""

import torch
from torch import Tensor


def temporal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    key_positions: Tensor | None = None,
    value_positions: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """Self-attention over frames with relative positions (Shaw et al. 2018).

    L[i, j] = s q_i . k_j + s q_i . K[i, j] with s = D^(-1/2), or, transposed, s q_i . k_j + D^(-1/4) q_j . K[i, j];
    out_i = sum_j softmax_j(L)[i, j] (v_j + V[i, j]).

    Args:
        query, key, value: (B, T, P, H*D).
        heads: number of heads H.
        key_positions, value_positions: vectors K and V per pair of frames, (T, T, D), or None for none.
        transposed: the second logit term uses the query of the other frame, and its own scale.

    Returns:
        (B, T, P, H*D).
    """
    videos, frames, pixels, channels = query.shape
    width = channels // heads
    scale = width**-0.5
    q, k, v = (_sequences(part, heads) for part in (query, key, value))
    empty = q.new_empty(q.shape[0], frames, frames)
    logits = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=scale)
    if key_positions is not None and transposed:
        pairs = key_positions.permute(1, 2, 0) * width**-0.25
        logits += torch.bmm(q.transpose(0, 1), pairs).permute(1, 2, 0)
    elif key_positions is not None:
        # One product per frame of the query, for all pixels and heads at once; here and below without a copy.
        logits.transpose(0, 1).baddbmm_(q.transpose(0, 1), key_positions.transpose(1, 2), alpha=scale)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
    out = torch.bmm(weights, v)
    if value_positions is not None:
        out.transpose(0, 1).baddbmm_(weights.transpose(0, 1), value_positions)
    return out.view(videos, pixels, heads, frames, width).permute(0, 3, 1, 2, 4).flatten(-2)


def _sequences(x: Tensor, heads: int) -> Tensor:
    """(B, T, P, H*D) -> (B*P*H, T, D)."""
    return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 2)
