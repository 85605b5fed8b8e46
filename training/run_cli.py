"""Commands that start, resume, prepare and describe runs."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from . import distributed
from .build import build_task, resume, start, start_or_resume
from .chain import Chain, read_chain, run_chain
from .config import RECIPES, DiffusionRecipe
from .info import describe_source
from .plan import describe_plan
from .recipe_files import RecipeFile
from .settings import InputError, describe
from .text_to_video_task import TextToVideoTask
from .trainer import Trainer, seed_everything

Commands = argparse._SubParsersAction
TRAIN = """examples:
  python -m weft.training train training/recipes/demo_lvdm.toml --dry-run
  python -m weft.training train training/recipes/demo_lvdm.toml --out runs/mine --set run.steps=2000
  torchrun --nproc-per-node 8 --max-restarts 3 -m weft.training train RECIPE.toml --out runs/mine --resume

Keys of a recipe, their defaults and meanings: python -m weft.training settings TASK
The run folder gets recipe.toml, metrics.jsonl, loss.png, tensorboard/, checkpoints/ and, with run.samples, samples/.
At Ctrl-C or SIGTERM the step is finished and a checkpoint written (exit code 128 + signal)."""


def add_run_commands(commands: Commands[argparse.ArgumentParser], count: Callable[[str], int]) -> None:
    """Add them to the command line; `count` reads a number from 1."""
    train = commands.add_parser(
        "train",
        help="train a recipe in a new run folder",
        epilog=TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(train)
    train.add_argument("--resume", action="store_true", help="go on where the run folder has checkpoints already")
    train.add_argument("--dry-run", action="store_true", help="print parameters, memory and steps per epoch, and stop")
    train.set_defaults(command=_train)

    again = commands.add_parser("resume", help="continue a run from its newest checkpoint")
    again.add_argument("folder", type=Path, metavar="RUN_DIR")
    again.set_defaults(command=_resume)

    cache = commands.add_parser("cache", help="encode the latents of a recipe's clips ahead of training")
    _add_recipe(cache)
    cache.set_defaults(command=_cache)

    for command in (train, again, cache):
        add_device(command)
    for command in (train, again):
        command.add_argument("--max-steps", type=count, metavar="N", help="stop after N steps of this call")

    info = commands.add_parser("info", help="say what a run folder, checkpoint or exported file is")
    info.add_argument("source", type=Path, metavar="RUN_DIR|CHECKPOINT|FILE.safetensors")
    info.set_defaults(command=_info)

    settings = commands.add_parser("settings", help="list every key of a recipe with its default and meaning")
    settings.add_argument("task", choices=sorted(RECIPES))
    settings.set_defaults(command=_settings)


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    command.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<recipe name>)")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add --device."""
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--device", type=_device, default=default, help="default: %(default)s")


def _device(name: str) -> torch.device:
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"found {name!r}, expected cpu, cuda or cuda:N") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return found


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.out or Path("runs") / options.recipe.stem
    return folder


def _train(options: argparse.Namespace) -> int:
    chain = read_chain(options.recipe)
    if chain is not None:
        return _train_chain(chain, options)
    file, folder = RecipeFile(options.recipe, options.set), _folder(options)
    if options.dry_run:
        print("\n".join(describe_plan(file.recipe, folder)))
        return 0
    with distributed.processes(options.device) as own_device, file.named():
        # Started again by torchrun, the same command goes on with its own run.
        begin = start_or_resume if options.resume or distributed.restarted() else start
        return _run(begin(file.recipe, folder, own_device), options.max_steps)


def _train_chain(chain: Chain, options: argparse.Namespace) -> int:
    if options.set or options.dry_run or options.max_steps:
        raise InputError(
            f"{options.recipe}: a chain of recipes takes no --set, --dry-run or --max-steps; its recipes do"
        )
    out = _folder(options)
    out.mkdir(parents=True, exist_ok=True)
    with distributed.processes(options.device) as own_device:
        ended_by = run_chain(chain, options.recipe.parent, out, own_device)
        if ended_by is None:
            return 0
        _say(f"{signal.Signals(ended_by).name}; the same command goes on")
    return 128 + ended_by


def _resume(options: argparse.Namespace) -> int:
    with distributed.processes(options.device) as own_device:
        return _run(resume(options.folder, own_device), options.max_steps)


def _run(trainer: Trainer, max_steps: int | None) -> int:
    ended_by = trainer.run(max_steps)
    if ended_by is None:
        _say(f"step {trainer.step} of {trainer.recipe.run.steps} in {trainer.folder}")
        return 0
    name = signal.Signals(ended_by).name
    _say(f"{name} at step {trainer.step}; continue with: python -m weft.training resume {trainer.folder}")
    return 128 + ended_by


def _say(text: str) -> None:
    if distributed.is_first():
        print(text)


def _cache(options: argparse.Namespace) -> int:
    file, folder = RecipeFile(options.recipe, options.set), _folder(options)
    recipe = file.recipe
    if not isinstance(recipe, DiffusionRecipe) or recipe.task == "show1":
        raise InputError(
            f"{options.recipe}: the task {recipe.task!r} trains on the clips themselves, nothing is cached"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with distributed.processes(options.device) as own_device, file.named():
        seed_everything(recipe.seed)
        task = build_task(recipe, folder, own_device)
        assert isinstance(task, TextToVideoTask)
        if distributed.is_first():
            clips, texts, place = task.clip_count, task.encode_captions(), recipe.autoencoder.cache or folder
            print(f"{clips} clips and {texts} captions of {options.recipe} are encoded in {place}")
        distributed.wait()
    return 0


def _info(options: argparse.Namespace) -> int:
    print("\n".join(describe_source(options.source)))
    return 0


def _settings(options: argparse.Namespace) -> int:
    print("\n".join(describe(RECIPES[options.task])))
    return 0
