"""Moving Shapes: a procedural text-video set whose captions are true by construction.

Coordinates are pixels with the origin at the upper left corner of the frame, so the first pixel's centre is (0.5, 0.5).
Shapes: T frames, H height, W width.
"""

import colorsys
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..settings import InputError, setting
from .captions import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    DIRECTIONS,
    ROWS,
    SHAPES,
    SPEEDS,
    ClipSpec,
    ShapeSpec,
    Split,
    picture_caption,
    single_object_specs,
    split_of,
)
from .paths import draw_paths, draw_turning_paths
from .video_files import write_video

HUES = {colour: index / len(COLOURS) for index, colour in enumerate(COLOURS)}
BACKGROUND_LEVELS = {"dark": (0.05, 0.17), "grey": (0.42, 0.56), "light": (0.82, 0.95)}
RADIUS = (0.11, 0.15)
"""Size of an object, as a fraction of the frame."""
MIDDLE = 0.08
"""Half the extent of the middle row and column of a picture, as a fraction of it."""
NAMED_PLACES = 0.75
"""How often the row of an object is told in the caption of a picture, and how often its column."""
HUE_JITTER = 0.02
SATURATION, VALUE = (0.85, 1.0), (0.8, 1.0)
FADING_VALUE = (0.66, 0.70)
"""Brightness in the middle of a clip that fades: it can still double from end to end."""
SHADE, UNDERLIT_SHADE = 0.6, 0.35
"""Brightness of the dark side of shaded and underlit objects; the tracker reads these as surely as flat ones."""


@dataclass(frozen=True)
class MovingShapesConfig:
    """What is drawn."""

    size: int = setting(64, minimum=8, doc="height and width of a frame (pixels)")
    frames: int = setting(16, minimum=1, doc="frames of a clip")
    fps: int = setting(8, minimum=1, doc="frames per second of written files")
    two_objects: float = setting(0.2, minimum=0, maximum=1, doc="share of clips with two objects")
    unnamed_speeds: float = setting(
        0.0, minimum=0, maximum=1, doc="share of captions without a speed; above 0 no word means any speed"
    )
    acceleration: float = setting(
        0.0, minimum=0, maximum=0.9, doc="largest change of a speed, as a share of it, from mid-clip to either end"
    )
    fade: float = setting(
        0.0, minimum=0, maximum=0.7, doc="largest logarithm of the factor by which objects get brighter in a clip"
    )
    styles: tuple[str, ...] = setting(
        ("flat",), doc="how objects are drawn, one per clip: flat, shaded (lit from above), underlit (dark above)"
    )
    part: int = setting(
        0, minimum=0, doc="frames after which objects turn, in long clips; 0: they go one way for the whole clip"
    )
    leaving: float = setting(
        0.0, minimum=0, maximum=1, doc="share of parts in which an object leaves the frame, to come back in the next"
    )
    shade_change: bool = setting(
        False, doc="whether an object's shade of its colour slowly turns into another one over the clip"
    )
    count: int = setting(30_000, minimum=1, doc="clips in each split")
    seed: int = setting(0, minimum=0, doc="decides every clip together with its split and index")

    def __post_init__(self) -> None:
        """Raises ValueError for styles that cannot be drawn, or parts that the frames are no multiple of."""
        if not self.styles or not set(self.styles) <= set(STYLES):
            raise ValueError(f"styles: found {list(self.styles)}, expected at least one of {', '.join(STYLES)}")
        if self.part and (self.part < 2 or self.frames % self.part):
            raise ValueError(f"part: found {self.part}, expected a divisor of frames = {self.frames} from 2, or 0")
        if self.leaving and not self.part:
            raise ValueError(f"leaving: found {self.leaving} with part = 0, expected 0: objects come back in a part")


@dataclass(frozen=True)
class ObjectTrack:
    """An object frame by frame: centres (T, 2) as x, y and radii (T,) in pixels, colours (T, 3) in 0..1."""

    shape: str
    centres: np.ndarray
    radii: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class Clip:
    """A specification with its true per-frame parameters; later objects are in front; backgrounds (T, 3) in 0..1.

    A long clip has parts of equal length, in each of which objects go another way; `spec` is what the first one shows.
    """

    spec: ClipSpec
    objects: tuple[ObjectTrack, ...]
    backgrounds: np.ndarray
    size: int
    style: str = "flat"
    parts: tuple[ClipSpec, ...] = ()

    def captions(self) -> list[tuple[int, str]]:
        """Return what is shown from which frame on."""
        parts = self.parts or (self.spec,)
        return [(len(self.backgrounds) * index // len(parts), part.caption()) for index, part in enumerate(parts)]


def sample_spec(rng: np.random.Generator, config: MovingShapesConfig, split: Split = "train") -> ClipSpec:
    """Draw what a clip of this split shows."""
    while True:
        count = 2 if rng.random() < config.two_objects else 1
        spec = _draw_spec(rng, count)
        if config.unnamed_speeds and rng.random() < config.unnamed_speeds:
            spec = replace(spec, objects=tuple(replace(shape, speed="") for shape in spec.objects))
        if split_of(spec) == split:
            return spec


def _draw_spec(rng: np.random.Generator, count: int) -> ClipSpec:
    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    colours = rng.permutation(len(COLOURS))[:count]
    objects = (ShapeSpec(COLOURS[colour], pick(SHAPES), pick(DIRECTIONS), pick(SPEEDS)) for colour in colours)
    return ClipSpec(tuple(objects), pick(BACKGROUNDS))


def sample_clip(rng: np.random.Generator, config: MovingShapesConfig, split: Split = "train") -> Clip:
    """Draw a clip: what it shows, and everything that its caption leaves open."""
    return animate(sample_spec(rng, config, split), rng, config)


def animate(spec: ClipSpec, rng: np.random.Generator, config: MovingShapesConfig) -> Clip:
    """Draw all that the caption leaves open: sizes, start positions, exact speeds and shades."""
    radii = rng.uniform(*RADIUS, len(spec.objects)) * config.size
    ways: list[tuple[str, ...]] = []
    if config.part:
        centres, ways = draw_turning_paths(spec, radii, rng, config)
    else:
        centres = draw_paths(spec, radii, rng, config)
    brightness = np.exp(rng.uniform(0, config.fade) * _lag(config.frames)) if config.fade else _lag(1) + 1
    objects = tuple(
        ObjectTrack(
            shape=shape.shape,
            centres=centres[index],
            radii=np.full(config.frames, radii[index]),
            colours=_draw_shades(shape.colour, rng, config) * brightness[:, None],
        )
        for index, shape in enumerate(spec.objects)
    )
    background = np.full((config.frames, 3), rng.uniform(*BACKGROUND_LEVELS[spec.background]))
    # Drawn last, and only where there is a choice: clips of one style are the same whatever it is.
    style = config.styles[rng.integers(len(config.styles))] if len(config.styles) > 1 else config.styles[0]
    return Clip(spec, objects, background, config.size, style, tuple(_going(spec, way) for way in ways))


def _going(spec: ClipSpec, ways: tuple[str, ...]) -> ClipSpec:
    """The same objects on other ways."""
    objects = (replace(shape, direction=way) for shape, way in zip(spec.objects, ways, strict=True))
    return replace(spec, objects=tuple(objects))


def _lag(frames: int) -> np.ndarray:
    """Return the time of every frame (T,), -0.5..0.5; 0 of a single one."""
    return np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)


def _draw_shades(colour: str, rng: np.random.Generator, config: MovingShapesConfig) -> np.ndarray:
    """Return the colour of an object in every frame (T, 3)."""
    values = FADING_VALUE if config.fade else VALUE
    shade = np.tile(_draw_shade(colour, values, rng), (config.frames, 1))
    if not config.shade_change:
        return shade
    return shade + (_draw_shade(colour, values, rng) - shade) * np.linspace(0, 1, config.frames)[:, None]


def _draw_shade(colour: str, values: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    hue = (HUES[colour] + rng.uniform(-HUE_JITTER, HUE_JITTER)) % 1.0
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*SATURATION), rng.uniform(*values)))


def picture_captions(clip: Clip, rng: np.random.Generator) -> list[str]:
    """Return a caption for every frame of a clip by itself (T), which says of some objects where they are."""
    centres = np.stack([track.centres for track in clip.objects], axis=1)[..., ::-1] / clip.size - 0.5
    numbers = 1 + (centres > MIDDLE).astype(int) - (centres < -MIDDLE)
    told = rng.random(numbers.shape) < NAMED_PLACES

    def place(number: np.ndarray, named: np.ndarray) -> tuple[str, str]:
        row, column = number
        return ROWS[row] if named[0] else "", COLUMNS[column] if named[1] else ""

    return [picture_caption(clip.spec, list(map(place, *frame))) for frame in zip(numbers, told, strict=True)]


def render(clip: Clip) -> np.ndarray:
    """Return the anti-aliased frames, uint8 (T, H, W, 3)."""
    grid = np.arange(clip.size, dtype=np.float32) + 0.5
    frames = np.empty((len(clip.backgrounds), clip.size, clip.size, 3), np.float32)
    frames[:] = np.float32(255) * clip.backgrounds[:, None, None]
    for track in clip.objects:
        centres, radii = track.centres.astype(np.float32), track.radii.astype(np.float32)
        x = grid[None, None, :] - centres[:, 0, None, None]
        y = grid[None, :, None] - centres[:, 1, None, None]
        cover = coverage(track.shape, x, y, radii[:, None, None])[..., None]
        colours = np.float32(255) * track.colours.astype(np.float32)[:, None, None]
        if clip.style != "flat":
            colours = colours * STYLES[clip.style](x, y, radii[:, None, None])[..., None]
        frames += cover * (colours - frames)
    return np.rint(frames).astype(np.uint8)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Return how much of each pixel at offset x, y from the object's centre lies inside it, 0..1 (broadcast shape)."""
    return np.clip(np.float32(0.5) - SIGNED_DISTANCES[shape](x, y, radius), 0, 1)


def _circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.9) * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Equilateral, pointing up, about its centroid."""
    sides = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(sides, y) - np.float32(0.7) * radius


SIGNED_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray | float], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
}


def _flat(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.ones(np.broadcast_shapes(x.shape, y.shape, radius.shape), np.float32)


def _shaded(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Light from the upper left."""
    return _falling((x + y) / np.float32(np.sqrt(2)) / radius, SHADE)


def _underlit(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Light from below."""
    return _falling(-y / radius * np.ones_like(x), UNDERLIT_SHADE)


def _falling(distance: np.ndarray, darkest: float) -> np.ndarray:
    """Brightness that falls from 1 to `darkest` with a distance of about -1..1 from the middle, in radii."""
    return np.float32(1) + np.float32(darkest - 1) * np.clip(np.float32(0.5) + np.float32(0.45) * distance, 0, 1)


STYLES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "flat": _flat,
    "shaded": _shaded,
    "underlit": _underlit,
}
"""Brightness (T, H, W) of an object's surface at an offset from its centre."""


class MovingShapes:
    """Map-style data set of (frames uint8 (T, H, W, 3), caption), a function of seed, split and index only."""

    def __init__(self, config: MovingShapesConfig, split: Split = "train") -> None:
        self.config = config
        self.split: Split = split

    def __len__(self) -> int:
        return self.config.count

    def clip(self, index: int) -> Clip:
        """Return the clip's true parameters; raises IndexError outside 0..len-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a data set of {len(self)} clips")
        return sample_clip(self._rng(index), self.config, self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        clip = self.clip(index)
        return render(clip), clip.spec.caption()

    def picture_captions(self, index: int) -> list[str]:
        """Return a caption for every frame of a clip by itself; see the function of this name."""
        return picture_captions(self.clip(index), self._rng(index, 1))

    def load(self, index: int, epoch: int = 0) -> tuple[np.ndarray, str]:
        """Return a clip, the same in every epoch."""
        return self[index]

    def texts(self, count: int) -> list[str]:
        """Return the captions of the first `count` clips, without drawing these."""
        return [sample_spec(self._rng(index), self.config, self.split).caption() for index in range(count)]

    def fingerprint(self, count: int) -> list[object]:
        """Return nothing: the clips depend on the settings alone."""
        return []

    def _rng(self, index: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, self.split == "held_out", index, *stream))


def held_out_captions(count: int, seed: int, config: MovingShapesConfig | None = None) -> list[str]:
    """Return distinct held-out captions in the training set's proportion of one and two objects.

    Raises InputError when `count` needs more captions with one object than are held out.
    """
    rng = np.random.default_rng(seed)
    pairs = round(count * (config or MovingShapesConfig()).two_objects)
    singles = [spec.caption() for spec in single_object_specs() if split_of(spec) == "held_out"]
    if count - pairs > len(singles):
        raise InputError(f"{count} captions need {count - pairs} with one object, but {len(singles)} are held out")
    captions = [singles[index] for index in rng.permutation(len(singles))[: count - pairs]]
    while len(captions) < count:
        spec = _draw_spec(rng, 2)
        if split_of(spec) == "held_out" and spec.caption() not in captions:
            captions.append(spec.caption())
    return [captions[index] for index in rng.permutation(count)]


def write_dataset(folder: Path, count: int, config: MovingShapesConfig, split: Split = "train") -> None:
    """Write `count` clips as 00000.mp4, ... and captions.jsonl with a line of file, caption and spec for each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = MovingShapes(config, split)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for index in range(count):
            clip = data.clip(index)
            file = f"{index:05d}.mp4"
            write_video(folder / file, render(clip), config.fps)
            line: dict[str, object] = {"file": file, "caption": clip.spec.caption(), "spec": asdict(clip.spec)}
            if clip.parts:
                line["captions"] = clip.captions()
            lines.write(json.dumps(line) + "\n")
