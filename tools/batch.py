"""Videos for a list of prompts through ComfyUI, in the form that `python -m weft.training evaluate` scores.

The server is started once; every prompt is a graph of its own with the next seed.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import demo
from .cli import seed
from .comfyui import locate
from .console import Failure, say
from .environment import Environment
from .server import running

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m weft.tools.batch", description=__doc__)
    parser.add_argument("prompts", type=Path, help="text file with a prompt per line")
    parser.add_argument("--workflow", default="LVDM text to video", help='default: "%(default)s"')
    parser.add_argument("--seed", type=seed, default=0, help="of the first prompt (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ID.INPUT=VALUE",
        help="another value for an input of the workflow, may be repeated",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the videos and captions.jsonl")
    parser.add_argument("--comfyui", type=Path, help="use this ComfyUI instead of the one in .venv")
    options = parser.parse_args(arguments)
    try:
        prompts = read_prompts(options.prompts)
        generate(prompts, options.workflow, options.seed, options.out, options.comfyui, options.set)
    except Failure as failure:
        print(failure.detail, f"error: {failure}", sep="\n" if failure.detail else "", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty; raises Failure where there are none."""
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not text in UTF-8 ({error.reason}): expected a prompt per line") from error
    if not prompts:
        raise Failure(f"{path} is empty: expected a prompt per line")
    return prompts


def generate(
    prompts: Sequence[str],
    workflow: str,
    first_seed: int,
    out: Path,
    comfyui: Path | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Write `NNNN.mp4` per prompt, `NNNN.png` of the picture that its workflow previews, and captions.jsonl.

    Raises Failure as `demo.set_input` and `demo.run` do.
    """
    changed = demo.load_graph(ROOT / "workflows" / "api", workflow)
    for change in changes:
        demo.set_input(changed, change)
    out.mkdir(parents=True, exist_ok=True)
    place = locate(Environment(ROOT), comfyui, None)
    with tempfile.TemporaryDirectory() as base, running(place, Path(base), ROOT, log=out / "server.log") as server:
        with open(out / "captions.jsonl", "w", encoding="utf-8") as captions:
            for index, prompt in enumerate(prompts):
                graph = copy.deepcopy(changed)
                demo.set_prompt(graph, prompt)
                demo.set_seed(graph, first_seed + index)
                name = f"{index:04}.mp4"
                outputs = demo.execute(server, graph)
                (out / name).write_bytes(demo.fetch(server, demo.saved_video(outputs)))
                picture = demo.shown_picture(outputs)
                if picture:
                    (out / name).with_suffix(".png").write_bytes(demo.fetch(server, picture))
                captions.write(json.dumps({"file": name, "caption": prompt}) + "\n")
                say(f"{index + 1} of {len(prompts)}: {prompt}")


if __name__ == "__main__":
    raise SystemExit(main())
