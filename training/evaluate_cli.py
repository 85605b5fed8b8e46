"""`python -m weft.training evaluate`: what it takes, and what it does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .distance import NETWORK, FrechetMeter
from .evaluate import evaluate_folder
from .protocol_scores import score_folder
from .protocols import FILES, PROTOCOLS
from .rating_sheets import SHEET, read_sheets, write_sheet
from .reconstruction import score_reconstructions
from .settings import InputError

RATINGS, RECONSTRUCTION = "harivo", "reconstruction"
MEANINGS = {
    **{name: protocol.source for name, protocol in PROTOCOLS.items()},
    RECONSTRUCTION: "PSNR and SSIM in RGB and YUV of videos beside those of --reference that have the same names",
    RATINGS: "yes or no by people, as HARIVO compares models: writes numbered copies and a sheet; --sheets reads it",
}


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command and its options."""
    listed = "\n".join(f"  {name:<16}{meaning}" for name, meaning in MEANINGS.items())
    evaluate = commands.add_parser(
        "evaluate",
        help="mean scores of a folder of videos with captions, or those of a paper's protocol",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Without --protocol: colours, shapes and directions read back from Moving Shapes videos.",
        epilog=f"protocols:\n{listed}",
    )
    evaluate.add_argument("folder", type=Path, metavar="DIR")
    evaluate.add_argument("--out", type=Path, metavar="FILE.json", help="default: DIR/scores.json")
    evaluate.add_argument(
        "--motion", type=Path, metavar="MODEL", help="also motion factors, by this file's autoencoder"
    )
    evaluate.add_argument(
        "--frechet",
        type=Path,
        nargs="?",
        const=NETWORK,
        metavar="FILE",
        help="also the Frechet distance to clips of the same captions, in this network's features (default: its own)",
    )
    evaluate.add_argument(
        "--reference", type=Path, metavar="DIR", help="real videos to compare with (with --frechet or --protocol)"
    )
    evaluate.add_argument("--protocol", choices=sorted(MEANINGS), help="measure as papers do, see below")
    for name, meaning in FILES.items():
        usage, _, what = meaning.partition(": ")
        option, metavar = usage.split()
        evaluate.add_argument(option, dest=name, type=Path, metavar=metavar, help=what)
    evaluate.add_argument("--partial", action="store_true", help="measure although the protocol asks for more")
    evaluate.add_argument("--sheets", type=Path, nargs="+", metavar="FILE.csv", help=f"filled {SHEET} of {RATINGS}")
    evaluate.set_defaults(command=run_evaluate)
    return evaluate


def run_evaluate(options: argparse.Namespace) -> int:
    """Measure, print and write; returns the exit code."""
    if options.protocol == RATINGS and not options.sheets:
        out = options.out or options.folder.with_name(f"{options.folder.name}-ratings")
        count = write_sheet(options.folder, out)
        print(
            f"{count} videos and {SHEET} in {out}; when filled: evaluate {out} --protocol {RATINGS} --sheets FILE.csv"
        )
        return 0
    table = _protocol_table(options) if options.protocol else _plain_table(options)
    out = options.out or options.folder / "scores.json"
    out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    shown = table if options.protocol else {name: value for name, value in table.items() if name != "videos"}
    print("\n".join(f"{name:<20}{value}" for name, value in shown.items()))
    print(f"written to {out}")
    return 0


def _plain_table(options: argparse.Namespace) -> dict[str, Any]:
    if options.reference and not options.frechet:
        raise InputError("--reference: found it without --frechet, which measures the distance to it, and --protocol")
    frechet = FrechetMeter(options.frechet, options.reference) if options.frechet else None
    return evaluate_folder(options.folder, options.motion, frechet)


def _protocol_table(options: argparse.Namespace) -> dict[str, Any]:
    if options.frechet or options.motion:
        raise InputError("--frechet and --motion: found them with --protocol, which measures other things")
    if options.protocol == RATINGS:
        # Raters got the copies; the key lies beside them.
        return read_sheets(options.folder, options.sheets)
    if options.protocol == RECONSTRUCTION:
        if options.reference is None:
            raise InputError("--reference: missing, expected the folder of the originals")
        return score_reconstructions(options.folder, options.reference)
    weights = {name: getattr(options, name) for name in FILES if getattr(options, name)}
    return score_folder(
        PROTOCOLS[options.protocol],
        options.folder,
        options.reference,
        weights,
        partial=options.partial,
        device=options.device,
    )
