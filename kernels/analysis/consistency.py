"""Whether frames of a video belong together, and to what its caption says: cosines of features.

Shapes: T frames, H, W pixels, C channels, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_consistency(features: Tensor) -> Tensor:
    """Cosine of the features of each frame and the next, (..., T, D) to (..., T-1); its mean is a video's consistency.

    With CLIP's image features this is the frame consistency of video papers. A video that stands still has 1.

    Raises:
        ValueError: fewer than two frames.
    """
    _check(features.shape[-2])
    return F.cosine_similarity(features[..., :-1, :].double(), features[..., 1:, :].double(), dim=-1)


def pixel_consistency(video: Tensor) -> Tensor:
    """Correlation of the pixels of each frame and the next, (..., T, H, W, C) to (..., T-1); it needs no network.

    1: the same up to brightness and contrast; 0: nothing in common, as after a cut. Frames of one colour are like each
    other, and like no others.

    Raises:
        ValueError: fewer than two frames.
    """
    _check(video.shape[-4])
    return torch.stack([_correlation(*pair) for pair in _pairs(video)], dim=-1)


def caption_similarity(frames: Tensor, caption: Tensor) -> Tensor:
    """CLIPSIM of a video (arXiv 2104.14806): mean cosine of image features (..., T, D) and the text's (..., D)."""
    return F.cosine_similarity(frames.double(), caption.double()[..., None, :], dim=-1).mean(dim=-1)


def pixel_motion(video: Tensor) -> Tensor:
    """Mean change of a value from each frame to the next, (..., T, H, W, C) to (..., T-1), in the unit of the video.

    Raises:
        ValueError: fewer than two frames.
    """
    _check(video.shape[-4])
    changes = [(after.float() - before.float()).abs().mean(dim=(-3, -2, -1)) for before, after in _pairs(video)]
    return torch.stack(changes, dim=-1)


def _pairs(video: Tensor) -> list[tuple[Tensor, Tensor]]:
    frames = video.unbind(-4)
    return list(zip(frames, frames[1:], strict=False))


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    first, second = (pixels.double().flatten(-3) for pixels in (before, after))
    first, second = (pixels - pixels.mean(dim=-1, keepdim=True) for pixels in (first, second))
    plain = torch.maximum(first.abs(), second.abs()).amax(dim=-1) < 1e-6
    return torch.where(plain, 1.0, F.cosine_similarity(first, second, dim=-1))


def _check(frames: int) -> None:
    if frames < 2:
        raise ValueError(f"A clip of {frames} frame has no change: give at least 2 frames.")
