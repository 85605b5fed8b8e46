"""What a Moving Shapes clip shows, as labels that hold or do not.

Shapes: L labels.
"""

import torch
from torch import Tensor

from .captions import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, ClipSpec

SPEED_WORDS = tuple(speed or "medium" for speed in SPEEDS)
GROUPS: dict[str, tuple[str, ...]] = {
    # What any of the objects has: found sooner, and on the way to which of them has it.
    "any": (*SHAPES, *DIRECTIONS, *SPEED_WORDS),
    "colour": COLOURS,
    "shape": tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    "direction": tuple(f"{colour} {direction}" for colour in COLOURS for direction in DIRECTIONS),
    "speed": tuple(f"{colour} {speed}" for colour in COLOURS for speed in SPEED_WORDS),
    "background": tuple(f"{background} background" for background in BACKGROUNDS),
    "softness": ("soft",),
}
"""Two objects never share a colour, so that a label says of which of them it is true."""
LABELS = tuple(label for group in GROUPS.values() for label in group)
SOFT = LABELS.index("soft")


def labels_of(spec: ClipSpec) -> Tensor:
    """Which of LABELS hold of a clip as it is drawn, (L,) of 0 and 1."""
    shown = {f"{spec.background} background"}
    for item in spec.objects:
        traits = (item.shape, item.direction, item.speed or "medium")
        shown |= {item.colour, *traits, *(f"{item.colour} {trait}" for trait in traits)}
    return torch.tensor([float(label in shown) for label in LABELS])


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of clips whose labels of a group are all right, by group; logits and labels (B, L)."""
    right = ((logits > 0) == (labels > 0)).split([len(group) for group in GROUPS.values()], dim=1)
    return {name: float(part.all(dim=1).double().mean()) for name, part in zip(GROUPS, right, strict=True)}
