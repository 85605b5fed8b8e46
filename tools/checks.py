"""All checks of the repository in one run, with one line at the end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .comfyui import NEWEST, OLDEST, ComfyUI, check, install_requirements, obtain
from .console import Failure, say
from .environment import Environment, fingerprint, make_link

OLDEST_TESTS = ("tests/server/test_smoke.py",)
REQUIREMENTS = ("tools/requirements.txt", "training/requirements.txt", "pyproject.toml")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run(environment: Environment, folder: Path | None, python: Path | None, pytest_arguments: Sequence[str]) -> int:
    """Set up, then run linter, type checker and all tests (given arguments: pytest alone); return 0 if all is well.

    The tests run on the ComfyUI in `folder` by the given Python, else on the newest and the oldest one by that of
    `.venv`. Raises Failure when one of them cannot run them.
    """
    if sys.version_info < (3, 11):
        raise Failure(f"the tests need Python 3.11 or newer, as the trainer does; this is {sys.version.split()[0]}")
    if folder is not None:
        check(folder)
    elif python is not None:
        raise Failure("--python goes with --comfyui")
    if python is not None:
        _check_python(python)
    environment.prepare()
    comfyui = ComfyUI(folder.resolve(), environment.python) if folder else obtain(environment, NEWEST)
    prepare(environment, comfyui)
    if python is not None:
        comfyui = replace(comfyui, python=python.absolute())
    chromium = browser()
    if pytest_arguments:
        return _call(environment, comfyui, chromium, ["pytest", *pytest_arguments])
    parts = [
        ("ruff check", comfyui, ["ruff", "check"]),
        ("ruff format", comfyui, ["ruff", "format", "--check"]),
        ("mypy", comfyui, ["mypy"]),
        (f"pytest on ComfyUI {folder or NEWEST.version}", comfyui, ["pytest"]),
    ]
    if folder is None:
        oldest = obtain(environment, OLDEST)
        parts.append((f"pytest on ComfyUI {OLDEST.version}", oldest, ["pytest", *OLDEST_TESTS]))
    return _call_all(environment, chromium, parts)


def prepare(environment: Environment, comfyui: ComfyUI) -> None:
    """Complete `.venv` with the packages of ComfyUI, the test tools and the trainer, and this repository as `weft`."""
    install_requirements(environment, comfyui)
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


def _check_python(python: Path) -> None:
    """Raise Failure unless this Python, which is the user's to change, has what the tests need."""
    try:
        done = subprocess.run([str(python), "-P", "-c", "import pytest, weft"], capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"--python {python} cannot be run: {error.strerror}") from error
    if done.returncode:
        found = (done.stderr.splitlines() or ["it failed"])[-1]
        install = f"{python} -m pip install -r {REQUIREMENTS[0]}, then {python} -m pip install --no-deps --editable ."
        raise Failure(f"--python {python} cannot run the tests ({found}): {install}")


def _call_all(
    environment: Environment, chromium: str | None, parts: Sequence[tuple[str, ComfyUI, Sequence[str]]]
) -> int:
    """Run every part, also after one that failed, and name those that did; 0 if none."""
    failed = ["finding a browser"] if in_ci() and chromium is None else []
    for name, comfyui, command in parts:
        say(f"\n== {name}")
        if _call(environment, comfyui, chromium, command):
            failed.append(name)
    say(f"\nfailed: {', '.join(failed)}" if failed else f"\nall passed: {', '.join(name for name, _, _ in parts)}")
    return 1 if failed else 0


def _call(environment: Environment, comfyui: ComfyUI, chromium: str | None, command: Sequence[str]) -> int:
    """Run a tool, telling the tests by variables which ComfyUI and which browser to use.

    Some tests have ComfyUI in their process, so they run by its Python; the other tools are those of `.venv`.
    """
    variables = {**os.environ, "WEFT_COMFYUI": str(comfyui.folder), "WEFT_CHROMIUM": chromium or ""}
    # -P: the root on sys.path would hide ComfyUI's `nodes` by ours.
    tests = [str(comfyui.python), "-P", "-m", "pytest"]
    tool = tests if command[0] == "pytest" else [str(environment.scripts / (command[0] + environment.python.suffix))]
    return subprocess.run([*tool, *command[1:]], cwd=environment.root, env=variables).returncode
