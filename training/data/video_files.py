"""Reading and writing video files with PyAV."""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..settings import InputError


@dataclass(frozen=True)
class PackedFile:
    """A file inside a .tar file: where it begins and how long it is, in bytes."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"

    def read(self) -> bytes:
        """Its content; raises InputError when the archive ends before."""
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self}: cannot be read: {error.strerror}") from error
        if len(content) < self.size:
            raise InputError(f"{self}: the archive ends after {len(content)} of its {self.size} bytes")
        return content


VideoPath = Path | PackedFile


def write_video(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> None:
    """Write uint8 frames (T, H, W, 3) as h264 (yuv420p, crf 0..51: lower is better) in the container the name says."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3)")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {height} x {width}; h264 with yuv420p needs even numbers")
    with av.open(str(path), "w") as container:
        # What x264's macroblock tree decides depends on memory that it did not write: packets differ from run to run.
        options = {"crf": str(crf), "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames of the first video stream, uint8 (T, H, W, 3), and frames per second.

    Raises InputError when there are none.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = stream.average_rate
    if not frames or rate is None:
        raise InputError(f"{path}: no frame could be decoded")
    return np.stack(frames), float(rate)


def count_frames(path: VideoPath) -> tuple[int, float, int, int]:
    """Frames of the first video stream, as its header says, else its packets; frames per second (0: not said); width,
    height.

    Only the first frame is decoded. Raises InputError for a file whose first frame cannot be decoded.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        count, rate = stream.frames, float(stream.average_rate or 0)
        first = next(container.decode(video=0), None)
        if first is None:
            raise InputError(f"{path}: no frame could be decoded")
    if not count:
        with _open(path) as container:
            count = sum(packet.size > 0 for packet in container.demux(video=0))
    return count, rate, first.width, first.height


def read_frames(path: VideoPath, chosen: Sequence[int]) -> list[av.VideoFrame]:
    """Frames of the first video stream by ascending numbers; InputError when it ends before or cannot be decoded.

    By torchcodec where it is installed: it jumps to them. By PyAV otherwise, or where torchcodec cannot read the file.
    """
    found = _read_with_torchcodec(path, chosen)
    if found is not None:
        return found
    with _open(path) as container:
        wanted = set(chosen)
        decoded = zip(range(chosen[-1] + 1), container.decode(video=0), strict=False)
        frames = {number: frame for number, frame in decoded if number in wanted}
    if len(frames) < len(wanted):
        raise InputError(
            f"{path}: {len(frames)} of the frames {chosen[0]} to {chosen[-1]} could be decoded, expected {len(wanted)}"
        )
    return [frames[number] for number in chosen]


def _read_with_torchcodec(path: VideoPath, chosen: Sequence[int]) -> list[av.VideoFrame] | None:
    """None: it is not there, or it cannot read them."""
    decoder = torchcodec_decoder()
    if decoder is None:
        return None
    try:
        source = path.read() if isinstance(path, PackedFile) else str(path)
        frames = decoder(source, num_ffmpeg_threads=1).get_frames_at(indices=list(chosen)).data
    except (RuntimeError, IndexError, ValueError):
        return None
    # PyAV resizes them, whoever has decoded them.
    return [av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24") for frame in frames]


@functools.cache
def torchcodec_decoder() -> Callable[..., Any] | None:
    """torchcodec's decoder; None where it is not installed, or finds no FFmpeg."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        return None
    return VideoDecoder


@contextmanager
def _open(path: VideoPath) -> Iterator[av.container.InputContainer]:
    """A file with a video stream; what the decoder says of it afterwards becomes an InputError with its name too."""
    try:
        with av.open(io.BytesIO(path.read()) if isinstance(path, PackedFile) else str(path), "r") as container:
            if not container.streams.video:
                raise InputError(f"{path}: no video stream")
            yield container
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video: {error.strerror}") from error
