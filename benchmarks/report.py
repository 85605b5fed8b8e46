"""What is printed and what is written: a table for people, JSON for comparisons over time."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from .case import Case
from .measure import Measurement

HEADER = (
    "case",
    "network",
    "ms",
    "cpu ms",
    "speed",
    "(range)",
    "cpu speed",
    "peak MB",
    "memory",
    "values",
    "TFLOP",
    "ops",
    "error",
)


def environment(device: torch.device) -> dict[str, object]:
    """What the numbers depend on besides the code, and which code it was."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
    }


def records(case: Case, settings: dict[str, object], results: Sequence[Measurement]) -> list[dict[str, object]]:
    """One JSON object per contender; speed and memory are ratios to the main peer."""
    return [
        {
            "case": case.name,
            **settings,
            **asdict(result),
            "median_seconds": result.median,
            "speed": results[1].median / result.median,
            "cpu_speed": results[1].cpu_median / result.cpu_median,
            "speed_range": speed_range(result, results[1]),
            "memory": memory_ratio(result, results[1]),
        }
        for result in results
    ]


def rows(case: Case, results: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """The table's lines of one case, in the order of `HEADER`."""
    peer = results[1]
    return [
        (
            case.name,
            result.contender,
            f"{1e3 * result.median:.1f}",
            f"{1e3 * result.cpu_median:.1f}",
            f"{peer.median / result.median:.2f}",
            "{:.2f}-{:.2f}".format(*speed_range(result, peer)),
            f"{peer.cpu_median / result.cpu_median:.2f}",
            f"{result.peak_bytes / 2**20:.1f}",
            f"{memory_ratio(result, peer):.2f}",
            f"{result.peak_values:.2f}",
            f"{result.flops / 1e12:.4f}",
            str(result.operations),
            f"{result.error:.1e}",
        )
        for result in results
    ]


def table(lines: Sequence[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """Lines under the header, in columns; the first two, which are names, to the left, numbers to the right."""
    everything = [header, *lines]
    widths = [max(len(line[column]) for line in everything) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in everything
    )


def speed_range(result: Measurement, peer: Measurement) -> tuple[float, float]:
    """Smallest and largest ratio of the times within one round."""
    ratios = [theirs / own for theirs, own in zip(peer.seconds, result.seconds, strict=True)]
    return min(ratios), max(ratios)


def memory_ratio(result: Measurement, peer: Measurement) -> float:
    """Peak memory relative to the peer's."""
    return result.peak_bytes / peer.peak_bytes


def cpu_model() -> str:
    """Name of the processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def revision(root: Path = Path(__file__).parents[1]) -> str:
    """The commit of this source tree, "-dirty" after it when files have changed, "unknown" outside a git checkout."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
