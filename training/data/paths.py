"""Where the objects of Moving Shapes go: one way through the whole clip, or another one in each of its parts.

Coordinates are pixels with the origin at the upper left corner of the frame. Shapes: T frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .captions import ClipSpec

if TYPE_CHECKING:
    from .moving_shapes import MovingShapesConfig

TRAVEL = {"slowly": (0.15, 0.21), "": (0.30, 0.38), "quickly": (0.50, 0.60)}
"""Distance covered in one clip, as a fraction of the frame; the tracker puts its limits in the gaps."""
ANY_TRAVEL = (0.04, 0.60)
"""Distance covered where captions leave the speed open."""
UNIT_STEPS = {"left to right": (1, 0), "right to left": (-1, 0), "top to bottom": (0, 1), "bottom to top": (0, -1)}
REACH = 1.25
"""Half the extent of the widest shape, in radii: what an object keeps away from the border."""
CROSSING = 0.06
"""How far from the middle of the frame, as a fraction of it, the middle of a path lies along its direction."""
PATH_CANDIDATES = 64
TURNING_CANDIDATES = 16


def draw_paths(spec: ClipSpec, radii: np.ndarray, rng: np.random.Generator, config: MovingShapesConfig) -> np.ndarray:
    """Return straight paths (objects, T, 2) inside the frame, across its middle and anywhere beside it.

    Of PATH_CANDIDATES draws this is the first in which two objects touch for at most an eighth of the clip, or else the
    one in which they touch the least.
    """
    steps = np.array([UNIT_STEPS[shape.direction] for shape in spec.objects])[:, None]
    limits = {**TRAVEL, "": ANY_TRAVEL} if config.unnamed_speeds else TRAVEL
    travel = np.array([rng.uniform(*limits[shape.speed], PATH_CANDIDATES) for shape in spec.objects]) * config.size
    displacement = steps * travel[..., None]
    margin = REACH * radii[:, None, None]
    lowest = margin + np.maximum(-displacement, 0)
    highest = config.size - margin - np.maximum(displacement, 0)
    middle = (config.size - displacement) / 2
    along = steps != 0
    lowest = np.where(along, np.maximum(lowest, middle - CROSSING * config.size), lowest)
    highest = np.where(along, np.minimum(highest, middle + CROSSING * config.size), highest)
    starts = rng.uniform(lowest, highest)
    progress = np.linspace(0, 1, config.frames)[:, None]
    if config.acceleration:
        progress = progress - rng.uniform(-config.acceleration, config.acceleration) * progress * (1 - progress)
    paths = starts[:, :, None] + displacement[:, :, None] * progress
    if len(paths) == 1:
        return paths[:, 0]
    return paths[:, _touching(paths, radii, config).argmin()]


def _touching(paths: np.ndarray, radii: np.ndarray, config: MovingShapesConfig) -> np.ndarray:
    """In how many frames two objects of paths (2, N, T, 2) touch, (N,); an eighth of the clip counts as none."""
    distance = np.linalg.norm(paths[0] - paths[1], axis=-1)
    return np.maximum((distance < REACH * radii.sum()).sum(axis=-1), config.frames // 8)


def draw_turning_paths(
    spec: ClipSpec, radii: np.ndarray, rng: np.random.Generator, config: MovingShapesConfig
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Return paths (objects, T, 2) that turn after every part, and the ways that objects go in each part.

    Objects stay inside the frame, but for a share of parts in which one leaves it; in the next part it comes back. Of
    TURNING_CANDIDATES draws this is the one in which two objects touch the least.
    """
    first = replace(config, frames=config.part, part=0, leaving=0.0)
    drawn = []
    for _ in range(TURNING_CANDIDATES if len(radii) > 1 else 1):
        starts = draw_paths(spec, radii, rng, first)
        drawn.append([_turning(index, spec, starts[index], radii, rng, config) for index in range(len(radii))])
    paths = np.array([[path for path, _ in candidate] for candidate in drawn]).swapaxes(0, 1)
    best = _touching(paths, radii, config).argmin() if len(radii) > 1 else 0
    return paths[:, best], list(zip(*(ways for _, ways in drawn[best]), strict=True))


def _turning(
    index: int,
    spec: ClipSpec,
    start: np.ndarray,
    radii: np.ndarray,
    rng: np.random.Generator,
    config: MovingShapesConfig,
) -> tuple[np.ndarray, list[str]]:
    """Path (T, 2) and ways of an object whose first part (frames of a part, 2) is given."""
    shape, margin = spec.objects[index], REACH * radii[index]
    limits = ANY_TRAVEL if config.unnamed_speeds and not shape.speed else TRAVEL[shape.speed]
    path, ways, away = start, [shape.direction], False
    moved = start[-1] - start[0]
    count = config.frames // config.part
    for part in range(1, count):
        leaves = part < count - 1 and not away and rng.random() < config.leaving
        travel = rng.uniform(*limits) * config.size
        room = {way: _room(path[-1], way, margin, config.size) for way in UNIT_STEPS if way != ways[-1]}
        free = [way for way, length in room.items() if length >= travel]
        if leaves:
            way = list(room)[rng.integers(len(room))]
            moved = np.multiply(UNIT_STEPS[way], room[way] + 2 * margin)
        elif away or not free:
            way, moved = _reverse(ways[-1]), -moved
        else:
            way = free[rng.integers(len(free))]
            moved = np.multiply(UNIT_STEPS[way], travel)
        progress = np.arange(1, config.part + 1)[:, None] / config.part
        path = np.concatenate([path, path[-1] + moved * progress])
        ways.append(way)
        away = leaves
    return path, ways


def _room(position: np.ndarray, way: str, margin: float, size: int) -> float:
    """How far an object can go one way and stay inside."""
    step = np.array(UNIT_STEPS[way])
    along = float(position @ np.abs(step))
    return (size - margin - along) if step.sum() > 0 else along - margin


def _reverse(way: str) -> str:
    return next(name for name, step in UNIT_STEPS.items() if step == tuple(-part for part in UNIT_STEPS[way]))
