"""Values and texts over the frames of a video, typed as `frame: value` pairs."""

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Straight lines between points, level outside them.

    Attributes:
        frames: of the points, rising.
        values: at these frames.
    """

    frames: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, frame: float) -> float:
        """The value at a frame, which may lie between two."""
        index = bisect_right(self.frames, frame)
        if index == 0:
            return self.values[0]
        if index == len(self.frames):
            return self.values[-1]
        (start, end), (low, high) = self.frames[index - 1 : index + 1], self.values[index - 1 : index + 1]
        return low + (high - low) * (frame - start) / (end - start)


def parse_curve(text: str) -> Curve:
    """Read `0: 300, 16: 600`, separated by commas or lines; a single number is level.

    Raises:
        ValueError: anything else; the message names the part that was not understood.
    """
    parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    if not parts:
        raise ValueError("The curve is empty: type a number, or pairs such as '0: 300, 16: 600'.")
    if len(parts) == 1 and ":" not in parts[0]:
        return Curve((0.0,), (_number(parts[0], parts[0]),))
    points: dict[float, float] = {}
    for part in parts:
        frame, found, value = part.partition(":")
        if not found:
            raise ValueError(f"Found '{part}' in the curve, expected a pair such as '16: 600'.")
        at = _number(frame, part)
        if at < 0:
            raise ValueError(f"Found '{part}' in the curve: frames are counted from 0.")
        if at in points:
            raise ValueError(f"The curve has two values at frame {frame.strip()}: leave one.")
        points[at] = _number(value, part)
    frames = sorted(points)
    return Curve(tuple(frames), tuple(points[frame] for frame in frames))


def _number(text: str, part: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"Found '{part}' in the curve, expected numbers, such as '16: 600'.")
    return number


@dataclass(frozen=True)
class TextLine:
    """A text and the frame that it holds from."""

    frame: int
    text: str


def parse_lines(text: str) -> list[TextLine]:
    """Read `0: a cat sleeps` and `48: a cat wakes up`, one a line; the text may have commas and colons.

    Raises:
        ValueError: anything else; the message names the line that was not understood.
    """
    lines: dict[int, str] = {}
    for line in (line.strip() for line in text.splitlines() if line.strip()):
        frame, found, said = (part.strip() for part in line.partition(":"))
        if not found or not frame.isdecimal() or not said:
            raise ValueError(
                f"Found the line '{line}', expected the number of a frame and a text: '48: a cat wakes up'."
            )
        if int(frame) in lines:
            raise ValueError(f"There are two texts from frame {frame} on: leave one.")
        lines[int(frame)] = said
    return [TextLine(frame, lines[frame]) for frame in sorted(lines)]
