"""The command line of `python -m weft.benchmarks`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .case import SIZES
from .measure import OutputsDifferError, measure
from .registry import CASES
from .report import environment, records, rows, table

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LEGEND = (
    "speed: median time of the first peer / own median; range: of single rounds; cpu speed: of processor times, "
    "which other programs disturb less; memory: own peak / the peer's; values: peak / (bytes per value * positions "
    "of the larger of input and output * base width); error: largest difference from it / its standard deviation."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the named cases; returns 1 when outputs differ somewhere."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("size", "batch", "dtype", "repeat")}
    where = environment(options.device)
    conditions = ", ".join(f"{key} {value}" for key, value in {**settings, **where}.items())
    print(conditions, flush=True)
    lines, written, notes, failures = [], [], [], []
    for name in options.names or CASES:
        case = CASES[name]
        try:
            results = measure(
                case,
                options.size,
                batch=options.batch,
                device=options.device,
                dtype=DTYPES[options.dtype],
                repeat=options.repeat,
            )
        except OutputsDifferError as error:
            failures.append(str(error))
            continue
        lines += rows(case, results)
        written += records(case, settings, results)
        notes.append(case.note)
    explained = [LEGEND, *dict.fromkeys(notes)]
    print("\n".join([table(lines), *explained]))
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    if options.json:
        content = json.dumps({"environment": where, "rows": written}, indent=1)
        options.json.write_text(content + "\n", encoding="utf-8")
        page = "\n\n".join([conditions, f"```\n{table(lines)}\n```", *explained])
        options.json.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m weft.benchmarks",
        description="Time, peak memory and work of our networks next to plain compositions with the same weights.",
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all without one")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="quarter: half the width, a quarter of the work")
    parser.add_argument("--batch", type=int, default=1, help="videos per call; guidance uses 2")
    parser.add_argument("--device", type=device_of, default=torch.device("cpu"), help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeat", type=int, default=5, help="timed calls of each network, in turns")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice without it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here, and the table beside")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}, expected one of {', '.join(CASES)}")
    if min(options.batch, options.repeat) < 1 or options.threads is not None and options.threads < 1:
        parser.error("--batch, --repeat and --threads must be at least 1")
    if options.json:
        prepare(options.json, parser)
    return options


def prepare(path: Path, parser: argparse.ArgumentParser) -> None:
    """Make the folder of the file now, so that a fault is not found when all is measured."""
    if path.suffix != ".json":
        parser.error(f"--json {path}: expected a name that ends in .json; the table goes beside it, to .md")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        parser.error(f"--json {path}: cannot be written: {error.strerror}")


def device_of(text: str) -> torch.device:
    """Read a device that this module can measure on and that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of cpu, cuda and cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise argparse.ArgumentTypeError(f"{text!r}: torch finds {found or 'no'} CUDA devices here, use another or cpu")
    return device
