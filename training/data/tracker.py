"""Reads a Moving Shapes video back: background, and the colour, shape, direction and speed of every object.

Only the frames are looked at. Backgrounds are grey, so what a pixel differs from the background by has the hue of the
object in front and the strength of its coverage, at soft edges as well. Coordinates are those of `moving_shapes`.
Shapes: T frames, H height, W width, N template width.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from .captions import BACKGROUNDS, COLOURS, SHAPES, SPEEDS, ClipSpec, ShapeSpec, parse_caption
from .moving_shapes import BACKGROUND_LEVELS, coverage
from .paths import TRAVEL, UNIT_STEPS

BACKGROUND_SPREAD = 0.12
"""Half of all pixels must be this close to the background, else there is none (noise)."""
CHROMA_RAMP = (0.15, 0.5)
"""Strength of colour from which a pixel begins to count, and from which it counts fully; objects have 0.6 to 1."""
SMALLEST_AREA = 0.01
"""Mean share of the frame below which a colour is no object; the smallest objects have 0.03."""
MOST_OBJECTS = 8
WINDOW = 1.8
"""Radius around a centre that is its object's, in radii of a disc of its area; the tip of a triangle is at 1.56."""
SMALLEST_TRAVEL = 0.06
"""Share of the frame below which an object stands still; slow objects cover 0.15."""
STRAIGHTNESS = 2.0
"""How much farther an object goes along its direction than across it."""
STEADINESS = 4.0
"""How much farther it goes than it strays, root mean square, from even motion."""
WORST_SHAPE_ERROR = 0.09
"""Squared difference to the best template, relative to the template; true shapes reach 0.02, a diamond has 0.094."""
TEMPLATE_WIDTH, TEMPLATE_REACH = 33, 1.15
"""Samples across a template, and its half width in roots of the object's area."""


@dataclass(frozen=True)
class TrackedObject:
    """What was read of an object; None where nothing fits. Centres (T, 2) as x, y and areas (T,) in pixels."""

    colour: str
    shape: str | None
    direction: str | None
    speed: str | None
    centres: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Tracked:
    """What was read of a video: the background's word, None where it is no even grey, and objects by falling area."""

    background: str | None
    objects: tuple[TrackedObject, ...]


@dataclass(frozen=True)
class Score:
    """Which parts of a caption a video shows; shape, direction and speed hold when every object has its own."""

    colour: bool
    shape: bool
    direction: bool
    speed: bool
    background: bool
    colour_fraction: float
    shape_fraction: float
    direction_fraction: float


def score(frames: np.ndarray, caption: str | ClipSpec) -> Score:
    """Compare uint8 frames (T, H, W, 3) with a caption."""
    spec = parse_caption(caption) if isinstance(caption, str) else caption
    return agreement(track(frames), spec)


def agreement(tracked: Tracked, spec: ClipSpec) -> Score:
    """Compare what was read of a video with a caption; colour holds when exactly the captioned colours are there."""
    pairs = _assign(spec.objects, tracked.objects)

    def fraction(attribute: str) -> float:
        hits = sum(getattr(found, attribute, None) == getattr(wanted, attribute) for wanted, found in pairs)
        return hits / len(pairs)

    shape, direction = fraction("shape"), fraction("direction")
    return Score(
        colour=sorted(found.colour for found in tracked.objects) == sorted(wanted.colour for wanted in spec.objects),
        shape=shape == 1,
        direction=direction == 1,
        speed=fraction("speed") == 1,
        background=tracked.background == spec.background,
        colour_fraction=fraction("colour"),
        shape_fraction=shape,
        direction_fraction=direction,
    )


def _assign(
    wanted: tuple[ShapeSpec, ...], found: tuple[TrackedObject, ...]
) -> list[tuple[ShapeSpec, TrackedObject | None]]:
    """Pair captioned with tracked objects so that most colours agree, then most shapes and directions."""

    def agreement(order: Iterable[TrackedObject | None]) -> int:
        return sum(
            4 * (b.colour == a.colour) + (b.shape == a.shape) + (b.direction == a.direction)
            for a, b in zip(wanted, order, strict=True)
            if b is not None
        )

    padded = (*found, *[None] * (len(wanted) - len(found)))
    return list(zip(wanted, max(itertools.permutations(padded, len(wanted)), key=agreement), strict=True))


def track(frames: np.ndarray) -> Tracked:
    """Read background and objects out of uint8 frames (T, H, W, 3)."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3), T >= 1")
    pixels = frames.astype(np.float32) / 255
    level = np.median(pixels.reshape(-1, 3), axis=0)
    difference = pixels - level
    chroma, nearest = _hues(difference)
    first, full = CHROMA_RAMP
    mass = np.clip((chroma - first) / (full - first), 0, 1)
    objects = [(hue, *path) for hue in range(len(COLOURS)) for path in _separate(mass * (nearest == hue))]
    objects = sorted(objects, key=lambda found: -found[2].mean())[:MOST_OBJECTS]
    tracked = []
    for index, (hue, centres, areas) in enumerate(objects):
        others = [(other[1], other[2]) for other in objects[:index] + objects[index + 1 :]]
        alone = _standing_alone(centres, areas, others)
        own = (nearest[alone] == hue) | (mass[alone] == 0)
        shape = _shape(difference[alone], chroma[alone], own, centres[alone], areas[alone])
        direction, speed = _motion(centres, areas, frames.shape[1:3])
        tracked.append(TrackedObject(COLOURS[hue], shape, direction, speed, centres, areas))
    return Tracked(_background(level, difference), tuple(tracked))


def _background(level: np.ndarray, difference: np.ndarray) -> str | None:
    """Name the background of median colour `level`, unless it is coloured or no colour holds for half of all pixels."""
    spread = np.sqrt(np.einsum("...c,...c", difference, difference))
    if np.ptp(level) > BACKGROUND_SPREAD or np.median(spread) > BACKGROUND_SPREAD:
        return None
    return min(BACKGROUNDS, key=lambda name: abs(np.mean(BACKGROUND_LEVELS[name]) - level.mean()))


def _hues(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the strength of colour, 0..1, and the index of the nearest of COLOURS, each (T, H, W)."""
    red, green, blue = np.moveaxis(difference, -1, 0)
    u, v = red - (green + blue) / 2, np.sqrt(np.float32(0.75)) * (green - blue)
    nearest = np.rint(np.arctan2(v, u) * np.float32(len(COLOURS) / (2 * np.pi))).astype(int) % len(COLOURS)
    return np.sqrt(u * u + v * v), nearest


def _separate(mass: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the mass (T, H, W) of one colour into objects: centres (T, 2) and areas (T,) of each."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    remaining = mass.copy()
    while remaining.mean() > SMALLEST_AREA and len(found) < MOST_OBJECTS:
        centres = _densest(remaining)
        radius = _reach(remaining.sum(axis=(1, 2)))
        for _ in range(3):
            inside = remaining * (_distance(centres, mass.shape[1:]) < radius)
            areas = inside.sum(axis=(1, 2))
            centres = _centroids(inside, centres)
            radius = _reach(areas)
        found.append((centres, areas))
        remaining = remaining * (_distance(centres, mass.shape[1:]) >= radius)
    return [(centres, areas) for centres, areas in found if areas.mean() > SMALLEST_AREA * mass[0].size]


def _typical(areas: np.ndarray) -> float:
    """Return the mean of areas (T,) in which frames count by their area, so that those without the object do not."""
    return float(areas @ areas / max(areas.sum(), 1e-6))


def _reach(areas: np.ndarray) -> float:
    """Return the radius in pixels around its centre within which everything is the object of these areas (T,)."""
    return WINDOW * np.sqrt(_typical(areas) / np.pi) + 1


def _visible(areas: np.ndarray) -> np.ndarray:
    """Mark the frames (T,) that show most of the object."""
    return areas > 0.6 * _typical(areas)


def _densest(mass: np.ndarray) -> np.ndarray:
    """Return for each frame of mass (T, H, W) the middle (T, 2) of the fullest square of the objects' typical area."""
    frames, height, width = mass.shape
    side = max(1, min(height, width, round(np.sqrt(_typical(mass.sum(axis=(1, 2)))))))
    total = np.pad(mass, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    boxes = total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]
    rows, columns = np.divmod(boxes.reshape(frames, -1).argmax(axis=1), boxes.shape[2])
    return np.stack([columns, rows], axis=-1) + side / 2


def _distance(centres: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the distance of every pixel to the frame's centre of `centres` (T, 2), (T, H, W)."""
    y, x = (np.arange(length, dtype=np.float32) + 0.5 for length in size)
    centres = centres.astype(np.float32)
    return np.hypot(x[None, None, :] - centres[:, 0, None, None], y[None, :, None] - centres[:, 1, None, None])


def _centroids(mass: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Return the centres of mass (T, 2) of (T, H, W); of frames without mass the given ones."""
    total = mass.sum(axis=(1, 2))
    x = mass.sum(axis=1) @ (np.arange(mass.shape[2]) + 0.5)
    y = mass.sum(axis=2) @ (np.arange(mass.shape[1]) + 0.5)
    safe = np.maximum(total, 1e-6)
    return np.where((total > 0)[:, None], np.stack([x / safe, y / safe], axis=-1), fallback)


def _motion(centres: np.ndarray, areas: np.ndarray, size: tuple[int, ...]) -> tuple[str | None, str | None]:
    """Return direction and speed of the line through the centres; frames weigh what they show of the object."""
    if _visible(areas).sum() < max(2, len(areas) / 4):
        return None, None
    time = np.linspace(0, 1, len(centres))
    weights = np.minimum(areas, _typical(areas))
    weights = weights / weights.sum()
    positions = centres / (size[1], size[0])
    offset, lag = positions - weights @ positions, time - weights @ time
    travel = (weights * lag) @ offset / (weights @ lag**2)
    scatter = np.sqrt(weights @ ((offset - np.outer(lag, travel)) ** 2).sum(axis=1))
    direction = max(UNIT_STEPS, key=lambda name: travel @ UNIT_STEPS[name])
    along = float(travel @ UNIT_STEPS[direction])
    if along < max(SMALLEST_TRAVEL, STRAIGHTNESS * np.abs(travel).min(), STEADINESS * scatter):
        return None, None
    return direction, min(SPEEDS, key=lambda word: abs(np.mean(TRAVEL[word]) - along))


def _standing_alone(centres: np.ndarray, areas: np.ndarray, others: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mark the frames (T,) that show an object apart from all others, or the one frame that comes nearest to it."""
    visible = _visible(areas)
    gap = np.full(len(centres), np.inf)
    for other_centres, other_areas in others:
        reach = WINDOW * (np.sqrt(areas / np.pi) + np.sqrt(other_areas / np.pi))
        gap = np.minimum(gap, np.linalg.norm(centres - other_centres, axis=-1) - reach)
    alone = visible & (gap > 0)
    return alone if alone.any() else visible & (gap == gap[visible].max())


def _shape(
    difference: np.ndarray, chroma: np.ndarray, own: np.ndarray, centres: np.ndarray, areas: np.ndarray
) -> str | None:
    """Name the shape whose template is nearest to the object's outline, averaged over the given frames.

    `own` (T, H, W) leaves out the pixels that show another colour.
    """
    inside = own & (_distance(centres, chroma.shape[1:]) < _reach(areas))
    strength = np.where(chroma > CHROMA_RAMP[0], chroma, 0) * inside
    # Frame by frame: an object may get brighter or darker.
    highest = np.array([np.quantile(frame[frame > 0], 0.9) if frame.any() else np.inf for frame in strength])
    core = strength > 0.8 * highest[:, None, None]
    colour = np.einsum("thw,thwc->tc", core, difference) / np.maximum(core.sum(axis=(1, 2)), 1)[:, None]
    unit = colour / np.maximum((colour**2).sum(axis=1), 1e-6)[:, None]
    cover = np.clip(np.einsum("thwc,tc->thw", difference, unit), 0, 1) * inside
    area = float(np.median(cover.sum(axis=(1, 2))))
    outline = _aligned(cover, _centroids(cover, centres), area).mean(axis=0).ravel()
    shapes, templates = _templates()
    errors = ((templates - outline) ** 2).sum(axis=1) / (templates**2).sum(axis=1)
    best = int(errors.argmin())
    return shapes[best] if errors[best] < WORST_SHAPE_ERROR else None


def _aligned(cover: np.ndarray, centres: np.ndarray, area: float) -> np.ndarray:
    """Sample cover (T, H, W) on the template's grid around each frame's centre, bilinearly: (T, N, N)."""
    grid = np.linspace(-TEMPLATE_REACH, TEMPLATE_REACH, TEMPLATE_WIDTH) * np.sqrt(area)
    padded = np.pad(cover, ((0, 0), (1, 1), (1, 1)))
    rows, down = _neighbours(centres[:, 1, None] + grid + 0.5, padded.shape[1])
    columns, right = _neighbours(centres[:, 0, None] + grid + 0.5, padded.shape[2])
    frame = np.arange(len(cover))[:, None, None]
    down, right = down[:, :, None], right[:, None, :]
    rows, columns = rows[:, :, None], columns[:, None, :]
    upper = padded[frame, rows, columns] * (1 - right) + padded[frame, rows, columns + 1] * right
    lower = padded[frame, rows + 1, columns] * (1 - right) + padded[frame, rows + 1, columns + 1] * right
    return upper * (1 - down) + lower * down


def _neighbours(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into the index of the pixel before them and the fraction of the way to the next one."""
    position = np.clip(position, 0, length - 1.001)
    index = np.floor(position).astype(int)
    return index, position - index


@cache
def _templates() -> tuple[list[str], np.ndarray]:
    """Return name and outline (N * N) of every shape at unit area, at several blurs and with slightly wrong areas."""
    grid = np.linspace(-TEMPLATE_REACH, TEMPLATE_REACH, TEMPLATE_WIDTH)
    pixel = grid[1] - grid[0]
    x, y = grid[None, :] / pixel, grid[:, None] / pixel
    names, templates = [], []
    for shape in SHAPES:
        unit_radius = 1 / np.sqrt(coverage(shape, x, y, 10.0).sum() / 100)
        for stretch, blur in itertools.product((0.94, 1.0, 1.06), (0.06, 0.1, 0.15, 0.22)):
            kernel = np.exp(-(((grid[:, None] - grid[None, :]) / blur) ** 2) / 2)
            kernel /= np.exp(-((grid / blur) ** 2) / 2).sum()
            outline = coverage(shape, x, y, stretch * unit_radius / pixel)
            names.append(shape)
            templates.append((kernel @ outline @ kernel.T).ravel())
    return names, np.array(templates)
