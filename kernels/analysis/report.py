"""What can be said of a video without any network: numbers, a line of text for each, and a picture of them over time.

Shapes: T frames, H, W pixels.
"""

from torch import Tensor

from .consistency import pixel_consistency, pixel_motion
from .fidelity import psnr, ssim, to_yuv
from .flicker import flicker
from .pictures import curve_picture, side_by_side, slice_picture

LEVELS = 255


def video_numbers(video: Tensor, reference: Tensor | None = None) -> dict[str, Tensor]:
    """Measures of a video (T, H, W, 3) in 0..1, over time where they have one.

    `motion` (T-1,) and `flicker` (), from three frames on, in levels of 0 to 255; `consistency` (T-1,) from -1 to 1.
    With a reference of the same shape also `psnr_rgb`, `psnr_yuv` in dB, `ssim_rgb` and `ssim_yuv`, all (T,).

    Raises:
        ValueError: fewer than two frames, or a reference of another size or length.
    """
    numbers = {"motion": LEVELS * pixel_motion(video), "consistency": pixel_consistency(video)}
    if len(video) > 2:
        numbers["flicker"] = LEVELS * flicker(video)
    if reference is None:
        return numbers
    if video.shape != reference.shape:
        raise ValueError(
            f"The video has {_shape(video)}, the reference {_shape(reference)}: PSNR and SSIM compare frame by frame, "
            "give videos of one size and length."
        )
    for name, pair in {"rgb": (video, reference), "yuv": (to_yuv(video), to_yuv(reference))}.items():
        numbers[f"psnr_{name}"], numbers[f"ssim_{name}"] = psnr(*pair), ssim(*pair)
    return numbers


def report_text(numbers: dict[str, Tensor]) -> str:
    """A line for each measure: its mean over the video, and between which values it lies over time."""
    lines = []
    for name, values in numbers.items():
        line = f"{name:<12} {float(values.double().mean()):.4g}"
        if values.ndim and len(values) > 1:
            line += f" ({float(values.min()):.4g} to {float(values.max()):.4g})"
        lines.append(line)
    return "\n".join(lines)


def report_picture(video: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    """From left to right motion, consistency and, where there is a reference, SSIM in RGB, each over time from 0 up to
    its largest; at last the middle row of the frames over time, downwards: (H', W', 3)."""
    curves = [numbers[name] for name in ("motion", "consistency", "ssim_rgb") if name in numbers]
    return side_by_side([*(curve_picture(values.cpu()) for values in curves), slice_picture(video.cpu())])


def video_report(images: Tensor, reference: Tensor | None = None) -> tuple[Tensor, str]:
    """The picture (1, H', W', 3) and the text of a video (T, H, W, C) of at least three channels, of which three count.

    Raises:
        ValueError: as `video_numbers` does.
    """
    video, other = (None if frames is None else frames[..., :3].float() for frames in (images, reference))
    assert video is not None
    numbers = video_numbers(video, other)
    return report_picture(video, numbers)[None], report_text(numbers)


def _shape(video: Tensor) -> str:
    frames, height, width, _ = video.shape
    return f"{frames} frames of {width} x {height}"
