"""The commands of dev.py."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import checks, demo
from .comfyui import locate
from .console import Failure, say
from .environment import Environment
from .server import check_port, running

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_WORKFLOW = "LVDM text to video"


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code; a failure is one line, not a traceback."""
    # Each raises an exception, which stops the server; a background job starts with the first one ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not there on Windows; nohup
        signal.signal(signal.SIGHUP, _leave)
    try:
        parser = make_parser()
        options, others = parser.parse_known_args(arguments)
        if options.command is run_test:
            return run_test(options, others)
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        return options.command(options)
    except Failure as failure:
        print(failure.detail, f"error: {failure}", sep="\n" if failure.detail else "", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def make_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = argparse.ArgumentParser(prog="dev.py", description="Weft: try it, test it, work on it.")
    commands = parser.add_subparsers(required=True, metavar="demo | test | serve")
    make = commands.add_parser("demo", help="make a video from a prompt with the small models that are included")
    make.add_argument("--prompt", help="what the video shows (default: the one saved in the workflow)")
    make.add_argument("--seed", type=seed, metavar="N", help="of the noise (default: the one saved in the workflow)")
    make.add_argument("--workflow", default=DEFAULT_WORKFLOW, metavar="NAME", help='default: "%(default)s"')
    make.add_argument("--out", type=Path, metavar="FILE", help="the .mp4 to write (default: output/demo-<seed>.mp4)")
    make.set_defaults(command=run_demo)
    test = commands.add_parser(
        "test",
        help="run linter, type checker and all tests",
        usage="%(prog)s [-h] [--comfyui FOLDER] [--python FILE] [PYTEST ARGUMENT ...]",
        description="Run linter, type checker and all tests; with arguments of pytest only pytest, with these.",
        allow_abbrev=False,  # --co is pytest's
    )
    test.set_defaults(command=run_test)
    serve = commands.add_parser("serve", help="open the canvas with the pack loaded")
    serve.add_argument("--port", type=port, default=8188, help="default: %(default)s")
    serve.set_defaults(command=run_serve)
    for command, default in ((make, "its own"), (test, "that of .venv"), (serve, "its own")):
        command.add_argument("--comfyui", type=Path, metavar="FOLDER", help="use this ComfyUI instead of our own")
        command.add_argument(
            "--python", type=Path, metavar="FILE", help=f"the Python that runs it (default: {default})"
        )
    return parser


def seed(text: str) -> int:
    """Read a seed as ComfyUI takes it."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)


def port(text: str) -> int:
    """Read a port that a server can listen on."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return int(text)


def run_demo(options: argparse.Namespace) -> int:
    """Make a video by a workflow of this repository and print where it is."""
    graph = demo.load_graph(ROOT / "workflows" / "api", options.workflow)
    if options.prompt is not None:
        demo.set_prompt(graph, options.prompt)
    used = demo.set_seed(graph, options.seed)
    out = options.out or ROOT / "output" / f"demo-{used}.mp4"
    if out.suffix != ".mp4":
        raise Failure(f"--out {out}: the video is an .mp4, name it so")
    if out.is_dir():
        raise Failure(f"--out {out} is a folder: name a file in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(ROOT)
    comfyui = locate(environment, options.comfyui, options.python)
    log = environment.folder / "demo.log"
    say(f"starting ComfyUI in {comfyui.folder} (log: {log})")
    with running(comfyui, environment.folder / "base", ROOT, log=log) as server:
        say(f'running "{options.workflow}"')
        video = demo.run(server, graph)
    out.write_bytes(video)
    say(str(out.resolve()))
    return 0


def run_test(options: argparse.Namespace, pytest_arguments: Sequence[str]) -> int:
    """Run the checks."""
    return checks.run(Environment(ROOT), options.comfyui, options.python, pytest_arguments)


def run_serve(options: argparse.Namespace) -> int:
    """Run ComfyUI until Ctrl-C."""
    check_port(options.port)
    environment = Environment(ROOT)
    comfyui = locate(environment, options.comfyui, options.python)
    base = environment.folder / "base"
    with running(comfyui, base, ROOT, options.port) as server:
        say(f"\nWeft is at {server.url}; models and outputs are in {base}; Ctrl-C ends it")
        return server.process.wait()
