"""Long latents to a video file, a part at a time: decoded, joined to the part before, encoded and forgotten.

Shapes: L latents along time, T frames, H, W size in pixels.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from .compat import cli_args, model_management, utils


def parts(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Begin and end in latents of what is decoded at once; neighbours share `overlap` latents, the last ones more.

    Raises:
        ValueError: the overlap is not 1 or more and below the part.
    """
    if not 1 <= overlap < size:
        raise ValueError(
            f"part is {size} latents and overlap {overlap}: parts share at least one latent and fewer than they have, "
            f"take 1 to {size - 1}."
        )
    begins = list(range(0, max(1, length - overlap), size - overlap))
    return [(max(0, min(begin, length - size)), min(begin + size, length)) for begin in begins]


@dataclass(frozen=True)
class Parts:
    """How latents are decoded: `size` at once, neighbours share `overlap`; a loop's end sees its start."""

    size: int
    overlap: int
    loop: bool = False


def frames(vae: object, samples: Tensor, cut: Parts) -> Iterator[Tensor]:
    """Decode latents (1, C, L, h, w) part by part; yields frames (T, H, W, 3) in 0..1 that follow each other.

    In what two parts share, the frames of the later one take over from those of the earlier. A causal VAE makes fewer
    frames of the first latent of a part: those that are missing are the earlier part's. Before the first part of a loop
    comes the last one, which is decoded twice so that no more than a part is kept.

    Raises:
        ValueError: the VAE is one of images, or of a loop a causal one, or the latents are none of videos; or as
            `parts` says.
    """
    _check(vae, samples, cut)
    beyond = cut.overlap if cut.loop else 0
    samples = torch.cat([samples, samples[:, :, :beyond]], dim=2)
    plan = parts(samples.shape[2], cut.size, cut.overlap)

    def decoded(begin: int, end: int) -> Tensor:
        model_management.throw_exception_if_processing_interrupted()
        return vae.decode(samples[:, :, begin:end])[0]  # type: ignore[attr-defined,no-any-return]

    # Frames of the last part that the next one shares.
    kept = decoded(*plan[-1])[-_count(vae, beyond) :].clone() if beyond else None
    for (begin, end), following in zip(plan, [*plan[1:], None], strict=True):
        part = decoded(begin, end)
        if kept is not None:
            part = _joined(kept, part, _count(vae, end) - _count(vae, begin))
        shared = _count(vae, beyond) if following is None else _count(vae, end) - _count(vae, following[0])
        yield part[: len(part) - shared]
        kept = part[len(part) - shared :].clone()
        del part  # not beside the next one while that is decoded


def _count(vae: object, latents: int) -> int:
    """Frames that a number of latents from the start of a video become."""
    ratio = vae.upscale_ratio[0] if isinstance(vae.upscale_ratio, tuple) else 1  # type: ignore[attr-defined]
    return (ratio(latents) if callable(ratio) else latents * ratio) if latents else 0


def _joined(before: Tensor, after: Tensor, count: int) -> Tensor:
    """The shared frames (T', H, W, 3) of a part and all of the next one's (T, ...) -> its `count` frames, blended."""
    after = after[max(0, len(after) - count) :]
    missing = count - len(after)
    fading = len(before) - missing
    weights = torch.linspace(0, 1, fading + 2)[1:-1].view(-1, 1, 1, 1).to(after)
    blended = torch.lerp(before[missing:], after[:fading], weights)
    return torch.cat([before[:missing], blended, after[fading:]])


def _check(vae: object, samples: Tensor, cut: Parts) -> None:
    if samples.ndim != 5:
        raise ValueError(
            f"Found a latent of shape {tuple(samples.shape)}, expected that of a video (1, channels, frames, height, "
            "width)."
        )
    if vae.latent_dim == 2:  # type: ignore[attr-defined]
        raise ValueError("This VAE decodes images: put Frame-wise VAE (Weft) between it and this node.")
    if samples.shape[0] != 1:
        raise ValueError(
            f"Found {samples.shape[0]} videos, a file holds one: choose one with the core node Latent From Batch."
        )
    if cut.loop and samples.shape[2] <= cut.overlap:
        raise ValueError(
            f"A loop of {samples.shape[2]} latents cannot share {cut.overlap} between its end and its start: take a "
            "smaller overlap."
        )
    if cut.loop and _count(vae, 2) != 2 * _count(vae, 1):
        raise ValueError("This VAE is causal, its first latent stands for fewer frames: switch loop off.")


def write(path: Path, images: Iterator[Tensor], total: int, fps: float, metadata: Mapping[str, object]) -> None:
    """Encode frames (T, H, W, 3) in 0..1 as h264 while they come; the file appears under its name when it is whole.

    Args:
        path: of an .mp4.
        images: in parts, of which one is in memory at a time.
        total: frames, for the progress bar.
        fps: frames per second.
        metadata: written as JSON by name, as the core does it.

    Raises:
        ValueError: sizes that h264 with half the colours cannot have.
    """
    progress = utils.ProgressBar(total)
    done = 0
    with _whole(path) as partial, av.open(str(partial), "w", options={"movflags": "use_metadata_tags"}) as container:
        for name, value in metadata.items():
            container.metadata[name] = json.dumps(value)
        stream = container.add_stream("h264", rate=Fraction(round(fps * 1000), 1000))
        for part in images:
            if not done:
                stream.width, stream.height, stream.pix_fmt = *_size(part), "yuv420p"
            for frame in map(_frame, part):
                container.mux(stream.encode(frame))
            done += len(part)
            progress.update_absolute(done)
            del part
        container.mux(stream.encode(None))


def _frame(image: Tensor) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray((image * 255).clamp(0, 255).byte().cpu().numpy(), format="rgb24")


def _size(part: Tensor) -> tuple[int, int]:
    height, width = part.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"Frames are {width}x{height} (width x height), h264 takes even numbers: crop the video.")
    return width, height


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under; the file is moved to `path` in the end, or removed if that does not come."""
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(path: Path, vae: object, samples: Tensor, cut: Parts, fps: float, metadata: Mapping[str, object]) -> None:
    """Write a LATENT's samples as a video file; as `frames` and `write` say."""
    write(path, frames(vae, samples, cut), _count(vae, samples.shape[2]), fps, metadata)


def pixel_size(vae: object, samples: Tensor) -> tuple[int, int]:
    """Width and height in pixels that samples become."""
    ratio = vae.upscale_ratio  # type: ignore[attr-defined]
    across, down = (ratio[2], ratio[1]) if isinstance(ratio, tuple) else (ratio, ratio)
    return samples.shape[-1] * across, samples.shape[-2] * down


def metadata_of(hidden: object) -> dict[str, object]:
    """What the core writes into files: the graph and what the frontend adds, unless it was told to write nothing."""
    if hidden is None or cli_args.args.disable_metadata:
        return {}
    extra = getattr(hidden, "extra_pnginfo", None) or {}
    prompt = getattr(hidden, "prompt", None)
    return {**extra, **({} if prompt is None else {"prompt": prompt})}
