"""Reading and writing video files with PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..settings import InputError


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


def count_frames(path: Path) -> int:
    """Frames of the first video stream: as its header says, else its packets. Only the first frame is decoded.

    Raises InputError for a file whose first frame cannot be decoded.
    """
    with _open(path) as container:
        count: int = container.streams.video[0].frames
        if next(container.decode(video=0), None) is None:
            raise InputError(f"{path}: no frame could be decoded")
    if not count:
        with _open(path) as container:
            count = sum(packet.size > 0 for packet in container.demux(video=0))
    return count


def read_frames(path: Path, chosen: range) -> list[av.VideoFrame]:
    """The chosen frames of the first video stream; raises InputError when it ends before or cannot be decoded."""
    with _open(path) as container:
        decoded = zip(range(chosen.stop), container.decode(video=0), strict=False)
        frames = [frame for number, frame in decoded if number in chosen]
    if len(frames) < len(chosen):
        raise InputError(f"{path}: {len(frames)} of the frames {chosen} could be decoded, expected {len(chosen)}")
    return frames


@contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """A file with a video stream; what the decoder says of it afterwards becomes an InputError with its name too."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: no video stream")
            yield container
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video: {error.strerror}") from error
