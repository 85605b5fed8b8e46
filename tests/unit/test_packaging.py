"""The published archive, simulated: what is in it, and that the registry's scanner finds nothing to object to."""

import ast
import os
import re
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MEGABYTE = 2**20

KINDS = {".py", ".json", ".jpg", ".png", ".md", ".txt", ".toml", ".safetensors"}
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "socketserver", "urllib", "urllib3"}
FORBIDDEN_IMPORTS = NETWORK | {"subprocess", "multiprocessing", "ctypes", "pip", "marshal", "huggingface_hub"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    *("os.environ", "os.getenv", "os.putenv", "os.system", "os.popen", "os.startfile", "os.fork"),
    *("torch.hub", "torch.hub.load"),
}
FORBIDDEN_PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")


def tree(root: Path) -> set[str]:
    """Files of the repository, those to be committed included: as git lists them, or walked where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (root / ".git").exists():  # an unpacked archive may lie inside another repository
        try:
            found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
            return {name for name in found.split("\0") if name and (root / name).is_file()}
        except (OSError, subprocess.CalledProcessError):
            pass  # not installed, or it refuses the owner of the folder
    return walked(root)


def walked(root: Path) -> set[str]:
    """All files below `root` but those that .gitignore names."""
    patterns, found = ["/.git", *patterns_of(root / ".gitignore")], set()
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not ignored((here / name / "file").as_posix(), patterns)]
        names = ((here / name).as_posix() for name in files)
        found |= {name for name in names if not ignored(name, patterns)}
    return found


def patterns_of(path: Path) -> list[str]:
    """The patterns of a .gitignore or .comfyignore."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file is left out, by gitignore's rules as far as ours need them: /anchored, for folders/, or *any."""
    parts = name.split("/")
    for length, part in enumerate(parts, 1):
        for pattern in patterns:
            matched = "/".join(parts[:length]) if "/" in pattern.rstrip("/") else part
            is_folder = length < len(parts)
            if fnmatchcase(matched, pattern.strip("/")) and (is_folder or not pattern.endswith("/")):
                return True
    return False


TREE = tree(ROOT)
COMFYIGNORE = patterns_of(ROOT / ".comfyignore")
ARCHIVE = sorted(name for name in TREE if not ignored(name, COMFYIGNORE))
SOURCES = [name for name in ARCHIVE if name.endswith(".py")]


def test_the_tree_is_listed_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = {".gitignore", "__init__.py", "web/embedded.png", "training/output/clips.py", "tests/data/a.json"}
    made = {".venv/bin/python", "output/demo-3.mp4", "runs/a/b/log", "kernels/__pycache__/a.pyc", "nodes/a.pyo"}
    for name in kept | made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    assert tree(tmp_path) == kept  # an unpacked archive
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").touch()
    monkeypatch.setenv("PATH", "")
    assert tree(tmp_path) == kept  # a clone on a machine without git


def test_the_archive_holds_the_pack_and_nothing_for_developers():
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= set(ARCHIVE)
    rooms = {name.split("/")[0] for name in ARCHIVE if "/" in name}
    assert {"kernels", "model_loaders", "nodes", "workflows", "demo_models", "web"} == rooms


def test_the_archive_holds_only_known_kinds_of_files():
    assert {name for name in ARCHIVE if Path(name).suffix not in KINDS} == {"LICENSE"}


def test_sizes_stay_inside_the_limits():
    def size(names: set[str]) -> float:
        return sum((ROOT / name).stat().st_size for name in names) / MEGABYTE

    assert size({name for name in TREE if name.startswith("demo_models/")}) < 32
    assert size({name for name in TREE if name.startswith("tests/data/")}) < 16
    assert size(TREE) < 56


@pytest.mark.parametrize("name", SOURCES)
def test_shipped_source_has_nothing_the_registry_forbids(name: str):
    assert not objections((ROOT / name).read_text(encoding="utf-8"))


def objections(source: str) -> list[str]:
    """What the registry's rules find in a source text: code from data, processes, network, environment."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            bad = module.split(".")[0] in FORBIDDEN_IMPORTS
            found += [f"from {name}" for name in names if bad or name in FORBIDDEN_ATTRIBUTES]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{node.func.id}()")
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in FORBIDDEN_ATTRIBUTES or name.startswith(FORBIDDEN_PREFIXES):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import subprocess",
        "from urllib.request import urlopen",
        "import os\nos.environ['A']",
        "from os import environ",
        "import os\nos.execv('a', [])",
        "import torch\ntorch.hub.load('a', 'b')",
    ],
)
def test_the_scan_finds(source: str):
    assert objections(source)


def test_the_scan_lets_a_model_be_set_to_evaluation():
    assert not objections("import os, torch\nmodel.eval()\ntorch.compile(model)\nos.path.join('a', 'b')")


def test_the_listed_packages_are_those_on_disk():
    folders = {Path(name).parent for name in TREE if name.endswith("/__init__.py") and not name.startswith("tests/")}
    on_disk = {"weft"} | {".".join(("weft", *folder.parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_the_registry_gets_what_it_asks_for():
    project = PROJECT["project"]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["dependencies"] == []
    assert (ROOT / project["license"]["file"]).read_text().lstrip().startswith("Apache License")
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= PROJECT["tool"]["comfy"].keys()


def test_artists_need_to_install_nothing():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
