"""What mitigating-gradient guidance adds to a step at official sizes: `python -m weft.benchmarks.guidance`.

The correction is measured. A step is not run, it is counted: its operations at the best rate of a product of matrices
on the same device take less time than any real step, so that the share that is printed is above the true one. On a CPU
times are the processor's, which other programs disturb less.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.sampling.mitigating_gradient import mitigated
from .case import SIZES
from .cli import DTYPES, device_of, prepare
from .harivo import SETTINGS, SHAPES, TEXT_TOKENS
from .measure import count
from .peers.animatediff import UNetWithOurs
from .registry import CASES
from .report import environment, table

LIMIT = 0.01
GUIDED = 2
"""Videos in a call: with text and without."""
_HARIVO_FRAMES = {"tiny": 8, "quarter": 24, "official": 24}
_MATRIX = {"cpu": 2048, "cuda": 8192}
HEADER = ("model", "latent", "guidance ms", "TFLOP", "step ms, at least", "share %, at most")
LEGEND = (
    "guidance: median time of the correction of one video (on a CPU: of the processor, all threads); TFLOP: of a step "
    "with guidance, both halves, without mitigation; step: these at the device's rate for products of matrices, which "
    "no real step reaches."
)


@dataclass(frozen=True)
class Result:
    """One model: seconds of the correction, and what a step of it computes.

    Attributes:
        latent: frames, channels, height, width of a video.
        seconds: of every repetition of the correction.
        flops: floating point operations of a guided step.
        rate: operations per second of the device at its best.
    """

    model: str
    latent: tuple[int, ...]
    seconds: list[float]
    flops: int
    rate: float

    @property
    def share(self) -> float:
        """Of a step's time, at most."""
        return statistics.median(self.seconds) * self.rate / self.flops


def _harivo(size: str) -> tuple[Callable[[], nn.Module], tuple[Tensor, ...]]:
    frames, settings = _HARIVO_FRAMES[size], SETTINGS[size]
    text = torch.randn(GUIDED, TEXT_TOKENS, settings.context_width)
    latents = torch.randn(GUIDED, 4, frames, *SHAPES[size][1:])
    return lambda: UNetWithOurs(settings), (latents, torch.full((GUIDED,), 500.0), text)


def _of_case(name: str, size: str) -> tuple[Callable[[], nn.Module], tuple[Tensor, ...]]:
    return lambda: CASES[name].ours(size), CASES[name].inputs(size, GUIDED)


MODELS: dict[str, Callable[[str], tuple[Callable[[], nn.Module], tuple[Tensor, ...]]]] = {
    "HARIVO": _harivo,
    **{name: lambda size, name=name: _of_case(name, size) for name in ("higen-video", "lvdm-unet-a", "lvdm-unet-b")},
}


@torch.no_grad()
def measure(model: str, size: str, device: torch.device, dtype: torch.dtype, repeat: int, rate: float) -> Result:
    """Time the correction of one video's latents, and count a step of its network on the meta device."""
    build, inputs = MODELS[model](size)
    with torch.device("meta"):
        network = build().eval()
    _, flops, _ = count(lambda: network(*(part.to("meta") for part in inputs)))
    video = inputs[0][:1].transpose(1, 2).to(device, dtype)
    ratio = torch.ones(1, device=device)
    seconds = [_seconds(lambda: mitigated(video, 40.0, ratio), device) for _ in range(repeat + 1)]
    return Result(model, tuple(video.shape[1:]), seconds[1:], flops, rate)


def best_rate(device: torch.device, dtype: torch.dtype, repeat: int) -> float:
    """Floating point operations per second of the quickest of some products of square matrices."""
    size = _MATRIX[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right, device) for _ in range(repeat + 1))


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def row(result: Result) -> tuple[str, ...]:
    """A line of the table, in the order of `HEADER`."""
    return (
        result.model,
        " x ".join(map(str, result.latent)),
        f"{1e3 * statistics.median(result.seconds):.2f}",
        f"{result.flops / 1e12:.3f}",
        f"{1e3 * result.flops / result.rate:.1f}",
        f"{100 * result.share:.4f}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all models; returns 1 where the correction may take more than its limit of a step."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = options.device, DTYPES[options.dtype]
    where = environment(device)
    conditions = {"size": options.size, "dtype": options.dtype, "repeat": options.repeat, **where}
    said = ", ".join(f"{key} {value}" for key, value in conditions.items())
    print(said, flush=True)
    rate = best_rate(device, dtype, options.repeat)
    results = [measure(model, options.size, device, dtype, options.repeat, rate) for model in MODELS]
    found = table([row(result) for result in results], HEADER)
    largest = max(results, key=lambda result: result.share)
    below = "below" if largest.share < LIMIT else "ABOVE"
    verdict = f"at most {100 * largest.share:.4f} % of a step ({largest.model}), {below} {100 * LIMIT:g} %."
    print("\n".join([found, verdict, LEGEND]))
    if options.json:
        rows = [asdict(result) | {"share": result.share} for result in results]
        options.json.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        page = "\n\n".join([said, f"```\n{found}\n```", verdict, LEGEND])
        options.json.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    return int(largest.share >= LIMIT)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m weft.benchmarks.guidance",
        description="What mitigating-gradient guidance adds to a step: its time beside a count of the step.",
    )
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--device", type=device_of, default=torch.device("cpu"), help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeat", type=int, default=20, help="timed calls")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice without it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here, and the table beside")
    options = parser.parse_args(arguments)
    if options.repeat < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--repeat and --threads must be at least 1")
    if options.json:
        prepare(options.json, parser)
    return options


if __name__ == "__main__":
    sys.exit(main())
