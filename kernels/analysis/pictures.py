"""Small pictures of measurements, as images (H, W, 3) in 0..1.

Shapes: T frames, N values, H, W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND, GRID, LINE = (0.11, 0.11, 0.13), (0.25, 0.25, 0.28), (0.35, 0.75, 1.0)
_COLD_TO_HOT = ((0.05, 0.03, 0.25), (0.45, 0.1, 0.5), (0.9, 0.35, 0.3), (1.0, 0.95, 0.65))


def curve_picture(values: Tensor, size: int = 256) -> Tensor:
    """Values (N,) over their index as a line from 0 up to the largest, with grid lines at quarters of it."""
    heights = (values.double() / values.max().clamp(min=1e-9)).clamp(0, 1)
    columns = torch.linspace(0, len(values) - 1, size, dtype=torch.float64)
    left = columns.floor().long().clamp(max=max(0, len(values) - 2))
    right = (left + 1).clamp(max=len(values) - 1)
    level = heights[left] + (heights[right] - heights[left]) * (columns - left)
    rows = torch.arange(size, dtype=torch.float64)[:, None]
    margin = size // 16
    height = margin + (1 - level) * (size - 1 - 2 * margin)
    # Steep pieces of the line stay joined: a column's mark reaches half way to its neighbours.
    neighbours = F.pad(height[None, None], (1, 1), mode="replicate")[0, 0]
    reach = torch.maximum((neighbours[2:] - height).abs(), (neighbours[:-2] - height).abs()) / 2
    picture = torch.tensor(BACKGROUND).expand(size, size, 3).clone()
    for quarter in range(5):
        picture[margin + quarter * (size - 1 - 2 * margin) // 4] = torch.tensor(GRID)
    picture[(rows - height).abs() <= reach.clamp(min=1.0)] = torch.tensor(LINE)
    return picture


def heat_picture(matrix: Tensor, lowest: float, highest: float, size: int = 256) -> Tensor:
    """A matrix (N, M) as coloured cells, from dark at `lowest` to bright at `highest`."""
    level = ((matrix - lowest) / max(highest - lowest, 1e-9)).clamp(0, 1)
    cells = F.interpolate(level[None, None].float(), (size, size), mode="nearest")[0, 0]
    stops = torch.tensor(_COLD_TO_HOT)
    place = cells * (len(stops) - 1)
    below = place.long().clamp(max=len(stops) - 2)
    share = (place - below)[..., None]
    return stops[below] * (1 - share) + stops[below + 1] * share


def slice_picture(frames: Tensor, size: int = 256) -> Tensor:
    """The middle row of every frame (T, H, W, 3), one under the other: x to the right, time downwards."""
    rows = frames[:, frames.shape[1] // 2].permute(2, 0, 1)
    return F.interpolate(rows[None].float(), (size, size), mode="nearest")[0].permute(1, 2, 0)


def side_by_side(pictures: list[Tensor], gap: int = 8) -> Tensor:
    """Pictures of one height in a row."""
    space = torch.tensor(BACKGROUND).expand(pictures[0].shape[0], gap, 3)
    row: list[Tensor] = []
    for picture in pictures:
        row += [picture, space]
    return torch.cat(row[:-1], dim=1)
