"""Measuring seams: whether a video changes more where the windows meet that it was made in than inside of them.

Shapes: T frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def seam_ratio(video: Tensor, starts: Sequence[int]) -> Tensor:
    """Mean difference of the frames on both sides of a border over that of neighbours in a window, (..., T, H, W, C) to
    (...).

    1: borders are as any other place; 1.1: frames differ by 10 % more there. Motion counts in both, so that it cancels
    where it is even; single videos whose motion is not say little, medians of many do. Where nothing changes anywhere,
    1; where only borders show, infinity.

    Args:
        video: as above.
        starts: first frames of the windows, ascending (`cascade.window_starts`). A frame that two windows share is of
            the later one: the border lies before it.

    Raises:
        ValueError: no border, or none but borders.
    """
    frames = video.shape[-4]
    borders = torch.zeros(max(0, frames - 1), dtype=torch.bool)
    borders[[start - 1 for start in starts if 0 < start < frames]] = True
    if not borders.any() or borders.all():
        raise ValueError(
            f"Windows that begin at {list(starts)} have {int(borders.sum())} borders between {frames} frames: expected "
            "some, and frames inside of windows."
        )
    steps = video.double().diff(dim=-4).abs().mean(dim=(-3, -2, -1))
    across, inside = steps[..., borders].mean(-1), steps[..., ~borders].mean(-1)
    still = (across == 0) & (inside == 0)
    return torch.where(still, 1.0, across / inside)
