"""What the trainer asks of a task."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .settings import Table

Batch = tuple[Tensor, ...]


class Losses(NamedTuple):
    """One scalar to minimize for every optimizer, and the scalars to report."""

    objectives: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Task(Protocol):
    """Networks, the batches they learn from, and their losses. Everything random uses torch's global generator."""

    networks: dict[str, nn.Module]
    """Trained, averaged and exported, by component name."""
    companions: dict[str, nn.Module]
    """Trained beside them and kept in checkpoints only."""
    clip_count: int
    """Clips of the training set."""
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

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Measures of these networks on held-out clips; uses no global generator."""
        ...
