"""One run shared by several processes, started by torchrun: whose rows are whose, one gradient, shared-out networks.

Every process draws the random numbers of the whole batch and keeps those of its own rows. So the generators of all
processes are always in one state, a checkpoint needs one of it, and neither losses nor resuming depend on how many
processes there are. Without torchrun there is one process, and everything here does nothing.

Gradients are averaged in one place, behind the backward passes, not by DistributedDataParallel: tasks have several
objectives with optimizers of their own and call parts of their networks (an encoder, a decoder, frame tokens), which
its hooks on one forward call do not see.

Shapes: B clips of the whole batch, b of this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.networks.skeleton import Stage

BUCKET = 1 << 25
"""Values of gradients that are averaged in one call."""
PATIENCE = timedelta(days=7)
"""How long processes wait for one that encodes a data set; torchrun ends them all when one dies."""
_waiting: list[dist.ProcessGroup] = []
"""The group in which they wait, once it is there; messages between main memories go there too."""


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of torchrun while it is open, where there are any; gives this one's device."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # torchrun keeps one store over its restarts: under the same names, addresses of dead processes are found there.
    store, own_rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count)
    _waiting.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield device
    finally:
        _waiting.clear()
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started this process again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    any_of(False)


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_waiting[0])
    return int(value)


def any_of(found: bool) -> bool:
    """Whether it was found in any process."""
    return bool(largest(int(found)))


def all_of(value: Any) -> list[Any]:
    """The plain values of all processes, in their order."""
    values: list[Any] = [value]
    if size() > 1:
        values = [None] * size()
        dist.all_gather_object(values, value, group=_waiting[0])
    return values


def own(whole: Tensor) -> Tensor:
    """This process's rows (b, ...) of something with all rows of the batch (B, ...)."""
    rows = len(whole) // size()
    return whole[rank() * rows : (rank() + 1) * rows]


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """What `draw` gives for so many rows (b, ...), as part of a draw for the rows of all processes."""
    return own(draw(rows * size()))


def called(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """What `draw` gives for so many rows, in a process for itself."""
    return draw(rows)


def noise_like(values: Tensor) -> Tensor:
    """Normal noise (b, ...) in float32, as part of that of the whole batch."""
    return drawn(lambda rows: torch.randn(rows, *values.shape[1:], device=values.device), len(values))


def gathered(part: Tensor) -> Tensor:
    """Rows (b, ...) of every process -> all of them (B, ...), without gradients."""
    if size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size())]
    dist.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean of a value over processes, without gradients."""
    if size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients.

    A parameter that has one in some processes alone counts as zero in the others. Gradients of networks that are shared
    out are averages already.
    """
    kept = [parameter for parameter in parameters if not is_shared_out(parameter)]
    if size() == 1 or not kept:
        return
    present = torch.tensor([parameter.grad is not None for parameter in kept], dtype=torch.uint8)
    dist.all_reduce(present, dist.ReduceOp.MAX, group=_waiting[0])
    used = [parameter for parameter, known in zip(kept, present.tolist(), strict=True) if known]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        together = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(together)
        parts = (together / size()).split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, in groups of about BUCKET values."""
    bucket: list[Tensor] = []
    values = 0
    for gradient in gradients:
        if bucket and values + gradient.numel() > BUCKET:
            yield bucket
            bucket, values = [], 0
        bucket.append(gradient)
        values += gradient.numel()
    if bucket:
        yield bucket


def start_alike(networks: Iterable[nn.Module]) -> None:
    """Give every process the first one's weights and buffers."""
    if size() == 1:
        return
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor.detach(), 0)


def normalize_together(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norms see the whole batch, where torch can: on GPUs. On a CPU each process has its own statistics."""
    if size() == 1 or device.type != "cuda":
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def share_out(network: nn.Module, device: torch.device) -> None:
    """Leave in every process a part of a network's weights, and so of gradients and optimizer (FSDP2).

    A stage is put together when it is called, and taken apart again. Its forward pass must be called as such.
    """
    # It costs seconds to import, and most runs do not need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (size(),))
    for stage in stages(network):
        fully_shard(stage, mesh=mesh)
    fully_shard(network, mesh=mesh)


def stages(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are put together, or computed anew, by themselves."""
    return [module for module in network.modules() if isinstance(module, Stage)]


def compute_anew(network: nn.Module) -> None:
    """Let a network keep of each stage its input alone, and compute the rest again in the backward pass."""
    for stage in stages(network):
        stage.forward = _anew(stage.forward)


def _anew(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        output: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
        return output

    return computed


def is_shared_out(tensor: object) -> bool:
    """Whether a process has a part of a tensor only."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has: mostly all of it."""
    return tensor.to_local() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process may have a part."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, known to every process, shared out as another one is."""
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


Keys = tuple[str | int, ...]
"""Where something lies in nested tables and lists."""


def leaves(tree: Any, at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """What nested tables and lists hold, with where it lies."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        yield at, tree
    for key, value in items:
        yield from leaves(value, (*at, key))


def put(tree: Any, at: Keys, value: Any) -> None:
    """Put a value into nested tables and lists that are there already."""
    for key in at[:-1]:
        tree = tree[key]
    tree[at[-1]] = value
