"""Show-1's windows: frames between keyframes, and higher resolution a few frames at a time (arXiv 2309.15818, 3.3).

Shapes: B videos, C colours, N keyframes, T frames, H, W size in pixels; values in -1..1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedules import NoiseSchedule, add_noise

KEYFRAME_DISTANCE = 4
"""Frames from one keyframe to the next: three are made in between."""
WINDOW = 8
"""Frames whose resolution is raised at once; neighbouring windows share one."""
UPSCALING = 4
NOISING = NoiseSchedule(spacing="cosine")
"""Of the noise on what a stage is given."""


def noised(clean: Tensor, level: int, noise: Tensor) -> Tensor:
    """What a stage is given (B, ...) with the noise of a level, 0 to 999; same shape."""
    return add_noise(NOISING, clean, torch.full((len(clean),), level), noise)


def between(first: Tensor, last: Tensor, blend: bool = True) -> Tensor:
    """What interpolation is given for a window: its first and last frame (B, C, H, W) -> (B, C, 5, H, W).

    With `blend` the frames between are mixed from both, as the released weights expect; else they are zero, as in the
    paper.
    """
    places = torch.linspace(0, 1, KEYFRAME_DISTANCE + 1).to(first)
    if not blend:
        frames = [first, *[torch.zeros_like(first)] * (KEYFRAME_DISTANCE - 1), last]
        return torch.stack(frames, dim=2)
    return torch.stack([(1 - place) * first + place * last for place in places], dim=2)


def ends_mask(window: Tensor) -> Tensor:
    """Which frames of a window (B, C, T, H, W) are given, (B, 1, T, H, W): 1 on the first and last, else 0."""
    mask = window.new_zeros(len(window), 1, *window.shape[2:])
    mask[:, :, [0, -1]] = 1.0
    return mask


def interpolate(
    keyframes: Tensor,
    noise: Tensor,
    sample: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    blend: bool = True,
    keep: bool = False,
    level: int = 0,
    augmentation: Tensor | None = None,
) -> Tensor:
    """Three frames between all neighbouring keyframes (B, C, N, H, W) -> (B, C, 4(N-1)+1, H, W).

    Windows of five frames are sampled one after the other, from the original keyframes; where two of them share a
    frame, the later one counts.

    Args:
        keyframes: as above.
        noise: (B, C, 5, H, W), the start of every window.
        sample: noise, given frames and mask of the given frames (B, 1, 5, H, W) -> a window like the noise.
        blend: as in `between`.
        keep: put the keyframes back in their places; else they are those that were sampled, as released.
        level, augmentation: noise on the given keyframes, none as released; (B, C, N, H, W).

    Raises:
        ValueError: fewer than two keyframes.
    """
    count = keyframes.shape[2]
    if count < 2:
        raise ValueError(f"Found {count} keyframe, expected at least 2: there is nothing between fewer.")
    shown = keyframes if augmentation is None else noised(keyframes, level, augmentation)
    mask = ends_mask(noise)
    size = (count - 1) * KEYFRAME_DISTANCE + 1
    video = keyframes.new_empty(*keyframes.shape[:2], size, *keyframes.shape[3:])
    for index in range(count - 1):
        start = index * KEYFRAME_DISTANCE
        given = between(shown[:, :, index], shown[:, :, index + 1], blend)
        video[:, :, start : start + KEYFRAME_DISTANCE + 1] = sample(noise, given, mask)
    if keep:
        video[:, :, ::KEYFRAME_DISTANCE] = keyframes
    return video


def window_starts(frames: int, window: int = WINDOW) -> list[int]:
    """First frames of windows that share a frame with the one before; the last one shares more where it must."""
    starts = list(range(0, max(1, frames - window + 1), window - 1))
    return starts if starts[-1] + window >= frames else [*starts, frames - window]


def enlarged(small: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, C, T, 4H, 4W), bilinear with the corners in their places."""
    frames = small.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, scale_factor=UPSCALING, mode="bilinear", align_corners=True)
    return frames.unflatten(0, (len(small), -1)).transpose(1, 2)


def resized(images: Tensor, width: int, height: int) -> Tensor:
    """Frames (T, H, W, 3) in 0..1 at another size: bicubic between whole grey levels, on the CPU.

    The release cuts to levels and resizes by Pillow; this differs from it by one level in under 1 % of the values.
    """
    levels = (images.cpu() * 255).clamp(0, 255).to(torch.uint8).movedim(-1, 1)
    frames = F.interpolate(levels, size=(height, width), mode="bicubic", antialias=True)
    return frames.movedim(1, -1).float() / 255


def super_resolve(
    small: Tensor,
    noise: Tensor,
    augmentation: Tensor,
    sample: Callable[[Tensor, Tensor], Tensor],
    *,
    level: int,
    first: Tensor | None = None,
    carry: bool = True,
) -> Tensor:
    """Four times the height and width: (B, C, T, H, W) -> (B, C, T, 4H, 4W), in windows one after the other.

    Args:
        small: as above.
        noise, augmentation: (B, C, min(8, T), 4H, 4W), the start of every window and the noise on what it is given.
        sample: noise and given frames, both of a window -> the window.
        level: of the noise on the given frames, 0 to 999.
        first: the first frame in high resolution (B, C, 4H, 4W), given without noise; None: it is as the others.
        carry: give each later window the frame that it shares with the one before as that was made, without noise.
    """
    large = enlarged(small)
    video = torch.empty_like(large)
    length = noise.shape[2]
    for start in window_starts(large.shape[2], length):
        window = slice(start, start + length)
        given = noised(large[:, :, window], level, augmentation)
        clean = first if start == 0 else video[:, :, start] if carry else None
        if clean is not None:
            given[:, :, 0] = clean
        video[:, :, window] = sample(noise, given)
    return video
