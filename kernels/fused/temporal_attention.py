"""Attention along time for every pixel, on the memory order of a channels-last video.

Shapes: B videos, T frames, P pixels, H heads of width D. Positions enter as learned tables of vectors per pair of
frames. Heads stay an axis of their own: folded into the batch they overrun launch grids at large sizes.
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
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
    width = q.shape[-1]
    logits = torch.einsum("btphd,bsphd->bphts", q * width**-0.5, k)
    if key_positions is not None:
        # One product per frame of the query, for all pixels and heads at once.
        pairs = key_positions.transpose(0, 1) if transposed else key_positions
        scale = width**-0.25 if transposed else width**-0.5
        order = "btphd,tsd->bphst" if transposed else "btphd,tsd->bphts"
        logits = logits + torch.einsum(order, q * scale, pairs)
    weights = logits.softmax(-1, dtype=torch.float32).to(v.dtype)
    out = torch.einsum("bphts,bsphd->btphd", weights, v)
    if value_positions is not None:
        out = out + torch.einsum("bphts,tsd->btphd", weights, value_positions)
    return out.flatten(-2)
