"""Measuring one case: equal outputs first, then memory, work and interleaved times."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .case import Case
from .memory import LiveTensors, peak_bytes

OURS = "ours"
# Largest difference of the outputs, in standard deviations of the peer's.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
# Calls before the clock runs; the call that is counted has warmed up the CPU already.
_WARM_UP = {"cpu": 0, "cuda": 5}


class OutputsDifferError(RuntimeError):
    """Ours and the peer compute different things: their times cannot be compared."""


@dataclass
class Measurement:
    """One contender of one case.

    Attributes:
        contender: "ours" or the peer's label.
        error: largest difference from the first peer's output, in standard deviations.
        peak_bytes: most memory during a call, without weights and inputs.
        peak_values: the same as values per position of the larger of input and output and base channel.
        flops: floating point operations of the layers, two per multiplication.
        operations: operations that are not views.
        seconds: wall time of each call; cpu_seconds: processor time of all threads.
    """

    contender: str
    error: float = 0.0
    peak_bytes: int = 0
    peak_values: float = 0.0
    flops: int = 0
    operations: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median wall time of a call in seconds."""
        return statistics.median(self.seconds)


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
        OutputsDifferError: an output differs from the first peer's by more than rounding.
    """
    device = torch.device(device)
    calls = contenders(case, size, device, dtype)
    inputs = tuple(part.to(device, dtype) for part in case.inputs(size, batch))
    results, outputs = {}, {}
    for name, call in calls.items():
        results[name], outputs[name] = _count(name, call, inputs)
    reference = next(outputs[name] for name in outputs if name != OURS)
    positions = max(inputs[0][:, 0].numel(), reference[:, 0].numel())
    for name, output in outputs.items():
        results[name].error = relative_error(output, reference)
        if not results[name].error <= TOLERANCE[dtype]:
            raise OutputsDifferError(
                f"{case.name}, {size}: the output of `{name}` differs from the peer's by {results[name].error:.1e} of its "
                f"standard deviation, at most {TOLERANCE[dtype]:.0e} can be rounding in {dtype}: nothing is reported."
            )
    del outputs, output, reference
    for name, call in calls.items():
        if device.type == "cuda":
            results[name].peak_bytes = peak_bytes(lambda call=call: call(*inputs), device)
        results[name].peak_values = results[name].peak_bytes / dtype.itemsize / (positions * case.width(size))
    _time(calls, inputs, results, repeat, device)
    return list(results.values())


def contenders(case: Case, size: str, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """The methods to call by name, all on the same random weights."""
    networks: dict[str, nn.Module] = {}
    tensors: Mapping[str, Tensor] = {}
    for label, build in case.peers.items():
        with torch.device("meta"):
            peer = build(size)
        if not tensors:
            tensors = random_weights(peer, device, dtype)
            with torch.device("meta"):
                networks[OURS] = case.ours(size)
            networks[OURS].load_state_dict(case.keys(tensors), assign=True)
        peer.load_state_dict(tensors, assign=True)
        networks[label] = peer
    return {name: getattr(network.eval(), case.method) for name, network in networks.items()}


def random_weights(network: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights that keep the scale of activations and let no layer vanish; norms scale by about one."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in network.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 1:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values /= tensor[0].numel() ** 0.5
        tensors[name] = values.to(device, dtype)
    return tensors


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Largest difference in standard deviations of the reference."""
    return ((output.float() - reference.float()).abs().max() / reference.float().std()).item()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# Torch counts its fused attention on GPUs only.
_CPU_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _count(name: str, call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Measurement, Tensor]:
    with FlopCounterMode(display=False, custom_mapping=_CPU_FLOPS) as flops, LiveTensors() as tracker:
        output = call(*inputs)
    counted = Measurement(
        name, peak_bytes=tracker.peak, flops=flops.get_total_flops(), operations=tracker.operations
    )
    return counted, output


def _time(
    calls: Mapping[str, Callable[..., Tensor]],
    inputs: tuple[Tensor, ...],
    results: Mapping[str, Measurement],
    repeat: int,
    device: torch.device,
) -> None:
    for round_number in range(_WARM_UP.get(device.type, 1) + repeat):
        for name, call in calls.items():
            wall, processor = _seconds(call, inputs, device)
            if round_number >= _WARM_UP.get(device.type, 1):
                results[name].seconds.append(wall)
                results[name].cpu_seconds.append(processor)


def _seconds(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    call(*inputs)
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
