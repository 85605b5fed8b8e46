"""Which clips a forward pass sees, and loading them ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from . import distributed
from .settings import InputError
from .task import Batch, RareClips, Task


class ShuffledClips:
    """All clips once per epoch in a new order; the order is a function of seed and position only."""

    def __init__(self, count: int, seed: int, rare: RareClips | None = None) -> None:
        if count < 1:
            raise InputError("the training set has no clips")
        self.count = count
        self.seed = seed
        self.rare = rare
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, position: int, length: int) -> tuple[Tensor, Tensor]:
        """Clip numbers (length,) at `position` of the endless sequence, and the epochs (length,) they belong to."""
        parts, epochs = [], torch.arange(position, position + length) // self.count
        while length:
            epoch, start = divmod(position, self.count)
            part = self._permutation(epoch)[start : start + length]
            parts.append(part)
            position, length = position + len(part), length - len(part)
        return torch.cat(parts), epochs

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, self._shuffled(generator)
            if self.rare:
                others = torch.nonzero(~self.rare.which)[:, 0]
                positions = epoch * self.count + torch.arange(self.count)
                replaced = self.rare.which[self._order] & (
                    torch.rand(self.count, generator=generator) >= self.rare.kept(positions)
                )
                drawn = torch.randint(len(others), (self.count,), generator=generator)
                self._order = torch.where(replaced, others[drawn], self._order)
        return self._order

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(self.count, generator=generator)


class StreamedClips(ShuffledClips):
    """Clips of archives, whose order changes with the epoch, shuffled within a buffer: each archive is read once, from
    end to end, and few are open at a time. The order is a function of seed and position only."""

    def __init__(self, runs: Sequence[int], seed: int, buffer: int, rare: RareClips | None = None) -> None:
        """`runs`: clips of each archive, which are numbered one archive after the other."""
        super().__init__(sum(runs), seed, rare)
        self.runs, self.buffer = list(runs), buffer

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        parts = torch.arange(self.count).split(self.runs)
        order = torch.cat([parts[number] for number in torch.randperm(len(parts), generator=generator).tolist()])
        windows = order.split(self.buffer)
        return torch.cat([window[torch.randperm(len(window), generator=generator)] for window in windows])


def clip_order(task: Task, seed: int) -> ShuffledClips:
    """The order of a task's training set: that of its archives where it reads clips from these in training."""
    streams = getattr(task, "streams", None)
    if streams is None:
        return ShuffledClips(task.clip_count, seed, task.rare_clips)
    return StreamedClips(streams.runs, seed, streams.buffer, task.rare_clips)


class BatchQueue:
    """The batches of a training run in order, the next one loaded in a second thread.

    Of every batch, processes that share the run load their own rows.
    """

    def __init__(
        self, load: Callable[[Tensor, Tensor], Batch], clips: ShuffledClips, batch_size: int, position: int
    ) -> None:
        self.position = position
        """Clips handed out so far, to all processes."""
        self._load, self._clips, self._batch_size = load, clips, batch_size
        self._pool = ThreadPoolExecutor(1)
        self._next = self._submit()

    def take(self) -> Batch:
        """The next batch."""
        batch = self._next.result()
        self.position += self._batch_size
        self._next = self._submit()
        return batch

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self) -> Future[Batch]:
        numbers, epochs = map(distributed.own, self._clips.take(self.position, self._batch_size))
        return self._pool.submit(self._load, numbers, epochs)
