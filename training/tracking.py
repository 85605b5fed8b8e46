"""Who is told of a run's numbers while it trains, beside its metrics.jsonl: TensorBoard, and what a recipe names."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from .settings import RecipeError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a hook gives: something that is told of every row of metrics."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        ...

    def close(self) -> None:
        """The run has ended, or was interrupted."""
        ...


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after its last checkpoint is not shown.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


@functools.cache
def _say_that_it_is_missing(error: str) -> None:
    log.warning("no TensorBoard files are written: %s; pip install tensorboard", error)


def open_trackers(hook: str, folder: Path, step: int) -> list[Tracker]:
    """TensorBoard where it is installed, and what the hook "module:function" makes of run folder and step."""
    trackers: list[Tracker] = []
    try:
        trackers.append(TensorBoard(folder, step))
    except ImportError as error:
        _say_that_it_is_missing(str(error))
    if hook:
        module, _, name = hook.partition(":")
        try:
            trackers.append(getattr(importlib.import_module(module), name)(folder, step))
        except (ImportError, AttributeError, ValueError) as error:
            raise RecipeError(
                f'run.tracker: found {hook!r} ({error}), expected "module:function" of a module that Python finds; the '
                "function takes run folder and step, and gives something with scalars(step, values) and close()"
            ) from error
    return trackers
