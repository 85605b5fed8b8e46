"""All checks of the repository in one run, with one line at the end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from .comfyui import NEWEST, OLDEST, ComfyUI, install_requirements, obtain
from .console import Failure, say
from .environment import Environment, fingerprint, make_link

OLDEST_TESTS = ("tests/server/test_smoke.py",)
REQUIREMENTS = ("tools/requirements.txt", "training/requirements.txt", "pyproject.toml")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run(environment: Environment, pytest_arguments: Sequence[str]) -> int:
    """Set up, then run linter, type checker and all tests (given arguments: pytest alone); return 0 if all is well."""
    if sys.version_info < (3, 11):
        raise Failure(f"the tests need Python 3.11 or newer, as the trainer does; this is {sys.version.split()[0]}")
    prepare(environment)
    newest, chromium = obtain(environment, NEWEST), browser()
    if pytest_arguments:
        return _call(environment, newest, chromium, ["pytest", *pytest_arguments])
    oldest = obtain(environment, OLDEST)
    parts = [
        ("ruff check", newest, ["ruff", "check"]),
        ("ruff format", newest, ["ruff", "format", "--check"]),
        ("mypy", newest, ["mypy"]),
        (f"pytest on ComfyUI {NEWEST.version}", newest, ["pytest"]),
        (f"pytest on ComfyUI {OLDEST.version}", oldest, ["pytest", *OLDEST_TESTS]),
    ]
    failed = ["finding a browser"] if in_ci() and chromium is None else []
    for name, comfyui, command in parts:
        say(f"\n== {name}")
        if _call(environment, comfyui, chromium, command):
            failed.append(name)
    say(f"\nfailed: {', '.join(failed)}" if failed else f"\nall passed: {', '.join(name for name, _, _ in parts)}")
    return 1 if failed else 0


def prepare(environment: Environment) -> None:
    """Complete `.venv` with the test tools, the trainer's packages and this repository as `weft`."""
    environment.prepare()
    install_requirements(environment, obtain(environment, NEWEST))
    texts = [(environment.root / name).read_text(encoding="utf-8") for name in REQUIREMENTS]
    environment.once("test tools", fingerprint(*texts), lambda: _install(environment))


def browser() -> str | None:
    """Return where Chromium is for the browser tests, installing it on a CI machine that lacks it."""
    found = os.environ.get("WEFT_CHROMIUM") or next(filter(None, (shutil.which(name) for name in BROWSERS)), None)
    if found is None and in_ci() and shutil.which("apt-get") and os.geteuid() == 0:
        say("set-up: chromium ...")
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "chromium"]):
            subprocess.run(command, stdout=subprocess.DEVNULL)
        found = shutil.which("chromium")
    if found is None:
        consequence = "this run fails" if in_ci() else "the browser tests are skipped"
        say(f"no Chromium found, {consequence}: install it (Debian: apt install chromium) or name it in WEFT_CHROMIUM")
    return found


def in_ci() -> bool:
    """Tell whether this runs as continuous integration, where nothing may be skipped."""
    return os.environ.get("CI") == "true"


def _install(environment: Environment) -> None:
    environment.install("the test tools", "-r", REQUIREMENTS[0])
    environment.install("weft", "--no-deps", "--editable", ".")
    make_link(environment.folder / "named" / "weft", environment.root)


def _call(environment: Environment, comfyui: ComfyUI, chromium: str | None, command: Sequence[str]) -> int:
    """Run a tool of `.venv`, telling the tests by variables which ComfyUI and which browser to use."""
    variables = {**os.environ, "WEFT_COMFYUI": str(comfyui.folder), "WEFT_CHROMIUM": chromium or ""}
    tool = environment.scripts / (command[0] + environment.python.suffix)
    return subprocess.run([str(tool), *command[1:]], cwd=environment.root, env=variables).returncode
