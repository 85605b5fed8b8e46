"""What the trainer asks of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .settings import Table

Batch = tuple[Tensor, ...]


class Losses(NamedTuple):
    """One scalar to minimize for every optimizer, and the scalars to report."""

    objectives: dict[str, Tensor]
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class RareClips:
    """Clips that are mostly replaced by others at first; positions count the clips handed out."""

    which: Tensor
    """Whether a clip is one of them, (clips,) bool; some are not."""
    share: float
    """What is kept of them up to position `start`; from there it rises in a straight line to all of them at `end`."""
    start: int
    end: int

    def kept(self, positions: Tensor) -> Tensor:
        """Share that is kept at each of the positions."""
        risen = (positions.double() - self.start) / max(1, self.end - self.start)
        return (self.share + (1.0 - self.share) * risen.clamp(0.0, 1.0)).where(positions < self.end, 1.0)


class Task(Protocol):
    """Networks, the batches they learn from, and their losses.

    Everything random uses torch's global generator and is drawn by `distributed.drawn`, where it differs among clips.
    """

    networks: dict[str, nn.Module]
    """Trained, averaged and exported, by component name."""
    companions: dict[str, nn.Module]
    """Trained beside them and kept in checkpoints only."""
    clip_count: int
    """Clips of the training set."""
    rare_clips: RareClips | None
    """Those of them that are seldom shown at first."""
    facts: Table
    """Plain values, kept in checkpoints, that an export needs beside the networks."""

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimizer, by objective."""
        ...

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """The clips (B,) of the training set as their epochs (B,) see them.

        It is called in a second thread and uses no global generator.
        """
        ...

    def losses(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch that lies on the training device."""
        ...

    def before_step(self) -> None:
        """What is done to the gradients, over all passes and processes, before every step of the optimizers."""
        ...

    def after_step(self) -> None:
        """What is done to the networks behind every step of the optimizers."""
        ...

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Measures of these networks on held-out clips; uses no global generator."""
        ...
