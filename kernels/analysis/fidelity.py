"""How near a video is to another one, frame by frame: PSNR and SSIM in RGB and YUV.

Shapes: T frames, H, W pixels, C channels; colours are 0..1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_ERROR = 1e-10
"""Mean squared error below which frames count as equal: 100 dB."""
WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window and its width, in pixels."""
LUMA, DARK, FLAT = (0.299, 0.587, 0.114), 0.01**2, 0.03**2


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every frame, (..., H, W, C) to (...); 100 where frames are equal.

    Raises:
        ValueError: shapes differ.
    """
    _check(video, reference)
    error = (video.double() - reference.double()).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp(min=SMALLEST_ERROR).log10()


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of every frame, (T, H, W, C) to (T,): the mean over channels and windows around pixels.

    Wang et al. 2004, with a Gaussian window of 11 pixels and frames reflected at their borders, as in torchmetrics;
    programs that leave windows across the border out differ in the third digit. 1 where frames are equal.

    Raises:
        ValueError: shapes differ, or frames are smaller than the window.
    """
    _check(video, reference)
    height, width = video.shape[-3:-1]
    if min(height, width) < WINDOW:
        raise ValueError(f"Frames of {width} x {height} pixels: SSIM takes at least {WINDOW} x {WINDOW}.")
    # One frame at a time: five blurred copies of a long video would not fit.
    return torch.stack([_ssim(*pair) for pair in zip(video, reference, strict=True)])


def to_yuv(video: Tensor) -> Tensor:
    """Colours (..., 3) as luma and two differences, all in 0..1 (ITU-R BT.601, full range)."""
    red, _, blue = video.unbind(-1)
    luma = (video * torch.tensor(LUMA, dtype=video.dtype, device=video.device)).sum(-1)
    return torch.stack([luma, (blue - luma) / 1.772 + 0.5, (red - luma) / 1.402 + 0.5], dim=-1)


def _ssim(frame: Tensor, reference: Tensor) -> Tensor:
    """One frame (H, W, C) and another to a number."""
    x, y = (pixels.movedim(-1, 0).double() for pixels in (frame, reference))
    blurred = _blur(torch.cat([x, y, x * x, y * y, x * y])).unflatten(0, (5, -1))
    mean_x, mean_y, square_x, square_y, product = blurred
    spread = square_x - mean_x.square() + square_y - mean_y.square()
    shared = product - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + DARK) / (mean_x.square() + mean_y.square() + DARK)
    return (brightness * (2 * shared + FLAT) / (spread + FLAT)).mean()


def _blur(pictures: Tensor) -> Tensor:
    """Pictures (N, H, W), reflected at their borders."""
    places = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    weights = torch.softmax(-places.square() / (2 * SIGMA**2), dim=0)
    wide = F.pad(pictures[:, None], (WINDOW // 2,) * 4, mode="reflect")
    rows = F.conv2d(wide, weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None, :])[:, 0]


def _check(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape:
        raise ValueError(f"Videos of shapes {tuple(video.shape)} and {tuple(reference.shape)}: expected the same.")
