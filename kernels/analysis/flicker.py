"""Measuring flicker: how far frames stick out of what comes before and after them.

Shapes: T frames.
"""

from torch import Tensor


def flicker(video: Tensor) -> Tensor:
    """Mean distance of a value from the median of it and its two neighbours in time, (..., T, H, W, C) to (...).

    In the unit of the video. Zero wherever three successive values rise or fall: for edges that move, fades and cuts,
    however fast. What stays is change that is taken back in the next frame. Without motion compensation, parts of the
    picture that are narrower than their way per frame count as well; pulsing over more than three frames does not.

    Raises:
        ValueError: fewer than three frames.
    """
    if video.shape[-4] < 3:
        raise ValueError(f"A clip of {video.shape[-4]} frames has no flicker: give at least 3.")
    # A frame with its neighbours, (..., T-2, H, W, C, 3); torch's median is wrong on frames that share their memory.
    windows = video.contiguous().unfold(-4, 3, 1)
    return (windows[..., 1] - windows.median(dim=-1).values).abs().mean(dim=(-4, -3, -2, -1))
