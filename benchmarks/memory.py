"""Peak memory of one call, beyond what was live before it."""

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts operations and the bytes of the tensors they made that are still alive.

    What an operation allocates and frees inside itself is not seen.

    Attributes:
        live: bytes now.
        peak: most bytes so far.
        operations: operations that made or changed a tensor; views are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Run an operation and note the storages that it made."""
        kwargs = kwargs or {}
        known = self._known.union(storage._cdata for storage in _storages((args, kwargs)))
        result = func(*args, **kwargs)
        made = {storage._cdata: storage for storage in _storages(result) if storage._cdata not in known}
        for storage in made.values():
            self._add(storage)
        self.peak = max(self.peak, self.live)
        self.operations += bool(made) or func._schema.is_mutable
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that were live during a call, without those that were live before it.

    On CUDA as the allocator sees it, elsewhere the tensors between operations.
    """
    if device.type != "cuda":
        with LiveTensors() as tracker:
            call()
        return tracker.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()
