"""The command line: `python -m weft.training <command>`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
from pathlib import Path

from ..kernels.sampling.schedules import ddim_timesteps
from ..model_loaders.errors import CheckpointError
from .ablation import Ablation, Sampling
from .config import override, read_table
from .data.captions import Split
from .data.moving_shapes import MovingShapesConfig, held_out_captions, write_dataset
from .evaluate import compare
from .evaluate_cli import add_evaluate
from .export import export
from .lora import export_lora
from .run_cli import add_device, add_run_commands
from .sample import MakesVideos, Sampler, write_samples
from .sample_show1 import CascadeSampler, opens
from .seams import measure_seams
from .sections import LARGEST_SEED
from .settings import InputError
from .trainer import TrainingError

FIRST_STEPS = """first steps, from the root of the repository:
  python -m weft.training train training/recipes/demo_lvdm_autoencoder.toml    an autoencoder, 16 minutes of a CPU core
  python -m weft.training train training/recipes/demo_lvdm.toml                the denoiser on its latents
  python -m weft.training sample runs/demo_lvdm --out samples                  videos of captions that it never saw
  python -m weft.training export runs/demo_lvdm --out mine.safetensors         a file for ComfyUI

`COMMAND --help` says more of each; training/README.md has the recipes, own clips, and several GPUs."""


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code (0 done, 1 the answer is no, 2 bad input, 128 + n ended by signal n)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        code: int = options.command(options)
    except (InputError, TrainingError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was written so far is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weft.training",
        description="Train and measure Weft's networks.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run_commands(commands, _count)
    _add_export(commands)
    _add_measuring(commands)
    _add_seams(commands)
    _add_ablation(commands)
    return parser


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bundle = commands.add_parser("export", help="combine finished runs into one file for ComfyUI")
    bundle.add_argument("sources", type=Path, nargs="+", metavar="RUN_DIR|CHECKPOINT")
    bundle.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    bundle.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: %(default)s")
    bundle.add_argument("--scores", type=Path, metavar="FILE.json", help="score table of `evaluate` to store with it")
    bundle.add_argument(
        "--lora-of", type=Path, metavar="BASE", help="write what an image model adds to BASE (run or bundle) as a LoRA"
    )
    bundle.add_argument("--rank", type=_count, default=8, help="of the LoRA (default: %(default)s)")
    bundle.set_defaults(command=_export)


def _add_measuring(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dataset = commands.add_parser("make-dataset", help="write Moving Shapes clips and their captions")
    dataset.add_argument("folder", type=Path, metavar="DIR")
    dataset.add_argument("--count", type=_count, required=True, metavar="N")
    dataset.add_argument("--seed", type=_seed, default=0)
    dataset.add_argument("--held-out", action="store_true", help="captions that training never sees")
    dataset.set_defaults(command=_make_dataset)

    captions = commands.add_parser("captions", help="print captions that training never sees, one per line")
    captions.add_argument("--count", type=_count, default=256, metavar="N", help="default: %(default)s")
    captions.add_argument("--seed", type=_seed, default=0)
    captions.set_defaults(command=_captions)

    score = commands.add_parser("score", help="compare a video with its caption; exit code 1 when they differ")
    score.add_argument("video", type=Path)
    score.add_argument("--caption", required=True)
    score.set_defaults(command=_score)

    add_device(add_evaluate(commands))

    sample = commands.add_parser("sample", help="make videos (or pictures) of held-out captions with a run")
    sample.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="RUN_DIR|CHECKPOINT",
        help="a run, or those of neighbouring stages of Show-1 in their order",
    )
    sample.add_argument("--out", type=Path, required=True, metavar="DIR")
    sample.add_argument(
        "--count", type=_count, default=32, metavar="N", help="held-out captions (default: %(default)s)"
    )
    sample.add_argument("--caption", action="append", help="instead of held-out captions; may be repeated")
    sample.add_argument("--steps", type=_ddim_steps, default=50, help="DDIM steps (default: %(default)s)")
    sample.add_argument("--guidance", type=float, default=3.0, help="default: %(default)s")
    sample.add_argument(
        "--mitigate",
        type=_strength,
        default=0.0,
        metavar="ALPHA",
        help="draw frames towards each other (HARIVO's mitigating gradient), per element; the paper's is 40, 0: off",
    )
    sample.add_argument("--seed", type=_seed, default=0)
    add_device(sample)
    sample.set_defaults(command=_sample)


def _add_seams(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    seams = commands.add_parser("seams", help="measure whether windows of a super-resolution (Show-1) leave seams")
    seams.add_argument("model", type=Path, metavar="RUN_DIR|CHECKPOINT|FILE.safetensors")
    seams.add_argument("--count", type=_count, default=64, metavar="N", help="held-out clips (default: %(default)s)")
    seams.add_argument("--steps", type=_count, default=25, help="steps of DPM-Solver++ (default: %(default)s)")
    seams.add_argument("--guidance", type=float, default=3.0, help="default: %(default)s")
    seams.add_argument("--seed", type=_seed, default=0)
    seams.add_argument("--out", type=Path, metavar="FILE.json", help="also write the ratio of every clip")
    add_device(seams)
    seams.set_defaults(command=_seams)


def _add_ablation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ablation = commands.add_parser(
        "ablation",
        help="train HARIVO with one part after the other switched on, and measure the videos of each",
        description="What is finished in --out is not made again: the same command goes on with an interrupted one.",
    )
    ablation.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="with all parts on")
    ablation.add_argument("--out", type=Path, required=True, metavar="DIR", help="for runs, videos and ablation.md")
    ablation.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    ablation.add_argument(
        "--steps",
        type=_count,
        metavar="N",
        help="of every variant on clips; those in which frame tokens learn alone come before (default: the recipe's)",
    )
    ablation.add_argument("--seeds", type=_count, default=3, metavar="N", help="default: %(default)s")
    ablation.add_argument(
        "--count", type=_count, default=64, metavar="N", help="held-out captions (default: %(default)s)"
    )
    ablation.add_argument("--ddim-steps", type=_ddim_steps, default=25, metavar="N", help="default: %(default)s")
    ablation.add_argument("--guidance", type=float, default=2.5, help="default: %(default)s")
    ablation.add_argument(
        "--mitigate", type=_strength, default=2.0, metavar="ALPHA", help="of the last variant (default: %(default)s)"
    )
    add_device(ablation)
    ablation.set_defaults(command=_ablate)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0")
    return value


def _ddim_steps(text: str) -> int:
    try:
        ddim_timesteps(_count(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return int(text)


def _export(options: argparse.Namespace) -> int:
    if options.lora_of:
        if len(options.sources) > 1:
            raise InputError(f"--lora-of: found {len(options.sources)} sources, expected one")
        values = export_lora(options.sources[0], options.lora_of, options.rank, options.out)
        print(f"{options.out}: LoRA of {values / 1e6:.2f} M values, {options.out.stat().st_size / 1e6:.2f} MB")
        return 0
    sizes = export(options.sources, options.out, options.weights, options.scores)
    listed = ", ".join(f"{role} {size / 1e6:.2f} M" for role, size in sizes.items())
    print(f"{options.out}: {listed} parameters, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _make_dataset(options: argparse.Namespace) -> int:
    split: Split = "held_out" if options.held_out else "train"
    config = MovingShapesConfig(count=options.count, seed=options.seed)
    write_dataset(options.folder, options.count, config, split)
    print(f"{options.count} clips and captions.jsonl in {options.folder}")
    return 0


def _captions(options: argparse.Namespace) -> int:
    print("\n".join(held_out_captions(options.count, options.seed)))
    return 0


def _score(options: argparse.Namespace) -> int:
    lines, right = compare(options.video, options.caption)
    print("\n".join(lines))
    return 0 if right else 1


def _seams(options: argparse.Namespace) -> int:
    table = measure_seams(options.model, options.count, options.steps, options.guidance, options.seed, options.device)
    print("change across borders of windows over that inside of them, median; 1: no seam")
    print("\n".join(f"{name:<20}{table[name]}" for name in ("videos", "clips", "carried", "apart")))
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def _ablate(options: argparse.Namespace) -> int:
    table = read_table(options.recipe)
    override(table, options.set)
    sampling = Sampling(
        count=options.count, steps=options.ddim_steps, guidance=options.guidance, alpha=options.mitigate
    )
    ablation = Ablation(table, options.recipe.name, options.out, options.steps, sampling, options.device)
    ended_by = ablation.run(options.seeds)
    if ended_by is not None:
        print(f"{signal.Signals(ended_by).name}; the same command goes on from here")
        return 128 + ended_by
    print((options.out / "ablation.md").read_text(encoding="utf-8"), end="")
    return 0


def _sample(options: argparse.Namespace) -> int:
    sampler, captions = _sampler(options)
    write_samples(sampler, captions, options.out, options.steps, options.guidance, options.seed)
    print(f"{len(captions)} videos and captions.jsonl in {options.out}")
    return 0


def _sampler(options: argparse.Namespace) -> tuple[MakesVideos, list[str]]:
    """What makes the videos, and their captions."""
    sources = options.sources
    captions = options.caption or held_out_captions(options.count, options.seed)
    if not opens(sources[0]):
        if len(sources) > 1:
            raise InputError(f"found {len(sources)} runs, expected one, or neighbouring stages of Show-1")
        return Sampler(sources[0], options.device, options.mitigate), captions
    if options.mitigate:
        raise InputError(f"--mitigate {options.mitigate:g}: stages of Show-1 are sampled without it")
    cascade = CascadeSampler(sources, options.device)
    given = cascade.captions(options.count)
    if given and options.caption:
        raise InputError("--caption: this stage goes on from held-out clips with captions; begin with keyframes")
    return cascade, given or captions
