"""Measuring one case: equal outputs first, then memory, work and interleaved times."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .case import Case
from .memory import LiveTensors, peak_bytes

OURS = "ours"
# Largest difference of the outputs, in standard deviations of the peer's.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
# Rounds before the clock counts; the CPU is warm from the call that was counted.
_WARM_UP = {"cpu": 0, "cuda": 5}

Call = Callable[..., Tensor]


class OutputsDifferError(RuntimeError):
    """Ours and the peer compute different things: their times cannot be compared."""


@dataclass
class Measurement:
    """One contender of one case.

    Attributes:
        contender: "ours" or the peer's label.
        error: largest difference from the main peer's output, in standard deviations.
        flops: floating point operations of the layers, two per multiplication.
        operations: operations that are not views.
        peak_bytes: most memory during a call, without weights and inputs.
        peak_values: the same in values per position of the larger of input and output, and channel of the base width.
        seconds: wall time of each call; cpu_seconds: processor time of all threads.
    """

    contender: str
    error: float
    flops: int
    operations: int
    peak_bytes: int
    peak_values: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median wall time of a call."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Median processor time of a call."""
        return statistics.median(self.cpu_seconds)


@dataclass(frozen=True)
class _Counted:
    """Result and cost of the first call."""

    output: Tensor
    flops: int
    operations: int
    peak_bytes: int


@torch.no_grad()
def measure(
    case: Case,
    size: str,
    *,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    repeat: int = 5,
) -> list[Measurement]:
    """Measure ours and all peers of a case on the same weights and inputs; ours comes first, then the main peer.

    Raises:
        OutputsDifferError: an output differs from the main peer's by more than rounding.
    """
    device = torch.device(device)
    calls = contenders(case, size, device, dtype)
    inputs = tuple(part.to(device, dtype) for part in case.inputs(size, batch))
    counted = {name: _count(call, inputs, device) for name, call in calls.items()}
    reference = counted[next(iter(case.peers))].output
    positions = max(inputs[0][:, 0].numel(), reference[:, 0].numel())
    per_value = dtype.itemsize * positions * case.width(size)
    results = []
    for name, cost in counted.items():
        error = relative_error(cost.output, reference)
        if not error <= TOLERANCE[dtype]:
            raise OutputsDifferError(
                f"{case.name}, {size}: the output of `{name}` differs from the peer's by {error:.1e} of its standard "
                f"deviation, expected at most {TOLERANCE[dtype]:.0e} in {dtype}: nothing is reported."
            )
        values = cost.peak_bytes / per_value
        results.append(Measurement(name, error, cost.flops, cost.operations, cost.peak_bytes, values))
    del counted, cost, reference
    _time(list(calls.values()), inputs, results, repeat)
    return results


def contenders(case: Case, size: str, device: torch.device, dtype: torch.dtype) -> dict[str, Call]:
    """The methods to call, ours first, all on the same random weights."""
    with torch.device("meta"):
        networks = {OURS: case.ours(size), **{label: build(size) for label, build in case.peers.items()}}
    tensors = random_weights(networks[next(iter(case.peers))], device, dtype)
    for name, network in networks.items():
        network.load_state_dict(case.keys(tensors) if name == OURS else tensors, assign=True)
    return {name: getattr(network.eval(), case.method) for name, network in networks.items()}


def random_weights(network: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights for all tensors of a network that keep the scale of activations and leave no layer without effect."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in network.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            values /= tensor[0].numel() ** 0.5
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensors[name] = values.to(device, dtype)
    return tensors


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Largest difference in standard deviations of the reference."""
    return ((output.float() - reference.float()).abs().max() / reference.float().std()).item()


def count(call: Callable[[], Tensor]) -> tuple[Tensor, int, LiveTensors]:
    """Result of a call, its floating point operations, and its operations and live tensors."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_FLOPS) as flops, LiveTensors() as tracker:
        output = call()
    return output, flops.get_total_flops(), tracker


def _count(call: Call, inputs: tuple[Tensor, ...], device: torch.device) -> _Counted:
    output, flops, tracker = count(lambda: call(*inputs))
    peak = peak_bytes(lambda: call(*inputs), device) if device.type == "cuda" else tracker.peak
    return _Counted(output, flops, tracker.operations, peak)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# Torch knows the work of its fused attention on GPUs only.
_CPU_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _time(calls: list[Call], inputs: tuple[Tensor, ...], results: list[Measurement], repeat: int) -> None:
    device = inputs[0].device
    warm_up = _WARM_UP[device.type]
    for index in range(warm_up + repeat):
        for call, result in zip(calls, results, strict=True):
            wall, processor = _seconds(call, inputs, device)
            if index >= warm_up:
                result.seconds.append(wall)
                result.cpu_seconds.append(processor)


def _seconds(call: Call, inputs: tuple[Tensor, ...], device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    call(*inputs)
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
