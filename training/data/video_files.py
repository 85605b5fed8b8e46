"""Reading and writing video files with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> None:
    """Write uint8 frames (T, H, W, 3) as h264 (yuv420p, crf 0..51: lower is better) in the container the name says."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3)")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {height} x {width}; h264 with yuv420p needs even numbers")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames of the first video stream, uint8 (T, H, W, 3), and frames per second; ValueError if none."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video stream")
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        rate = stream.average_rate
    if not frames or rate is None:
        raise ValueError(f"{path}: no frame could be decoded")
    return np.stack(frames), float(rate)
