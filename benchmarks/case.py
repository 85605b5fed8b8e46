"""What is measured: a network of ours, its peers, and their common inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

SIZES = ("tiny", "quarter", "official")

Build = Callable[[str], nn.Module]
Inputs = Callable[[str, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    Attributes:
        name: as typed on the command line.
        ours: size -> our network.
        peers: label -> (size -> peer); the first is the one that speed and memory are compared with, all share weights.
        keys: the peer's tensors by name -> ours.
        inputs: (size, batch) -> arguments of the call, float32 on the CPU.
        width: size -> base width of the network.
        method: the method of all networks that is called.
        note: what a reader must know about the comparison.
    """

    name: str
    ours: Build
    peers: Mapping[str, Build]
    keys: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    inputs: Inputs
    width: Callable[[str], int]
    method: str = "forward"
    note: str = ""
