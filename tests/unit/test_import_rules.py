"""Which room may import which: held by reading the imports of every module, without running any."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "model_loaders", "nodes", "training", "benchmarks", "tools")
SHIPPED = ("kernels", "model_loaders", "nodes")

COMFYUI = {
    *("app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("comfyui_version", "execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server"),
}

# room -> the rooms it may import besides itself, and the packages besides the standard library
OURS = {
    "kernels": set(),
    "model_loaders": {"kernels"},
    "model_loaders.bridge": {"kernels", "model_loaders"},
    "nodes": {"kernels", "model_loaders", "model_loaders.bridge"},
    "training": {"kernels", "model_loaders"},
    "benchmarks": {"kernels", "model_loaders", "training"},
    "tools": set(),
    # Makes the workflow files; nothing that dev.py needs before its set-up imports it.
    "tools.workflows": {"tools"},
}
IMPORTED_AS = {"opencv-python-headless": "cv2", "pillow": "PIL", "torch-fidelity": "torch_fidelity"}
OPTIONAL = {"torchcodec"}  # used where it is installed; PyAV does without
REQUIRED = re.findall(r"^[\w-]+", (ROOT / "training" / "requirements.txt").read_text(), re.MULTILINE)
TRAINER = {IMPORTED_AS.get(name, name) for name in REQUIRED}
PACKAGES = {
    "kernels": {"torch", "triton"},
    "model_loaders": {"torch", "safetensors"},
    "model_loaders.bridge": {"torch", "safetensors", "av"} | COMFYUI,
    "nodes": {"torch", "comfy_api", "comfyui_version", "folder_paths"},
    "training": TRAINER | OPTIONAL,
    "benchmarks": TRAINER,
    "tools": set(),
    "tools.workflows": {"av", "playwright"},
}


@dataclass(frozen=True)
class Module:
    """A source file of ours: its name below the root package and its syntax tree."""

    path: Path
    name: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The part of the house it stands in."""
        return room_of(self.name)


def room_of(name: str) -> str:
    """The room of a dotted module name."""
    inner = ("model_loaders.bridge", "tools.workflows")
    return next((room for room in inner if name.startswith(room)), name.split(".")[0])


def modules() -> Iterator[Module]:
    """All modules in the rooms."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield Module(path, name, ast.parse(path.read_text(encoding="utf-8")))


MODULES = list(modules())
NAMES = {module.name for module in MODULES}


def own_imports(module: Module) -> Iterator[str]:
    """Names of our modules that this one imports; all such imports are relative."""
    package = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= len(package) + 1, f"{module.path}:{node.lineno} leaves the package"
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base_name = ".".join(part for part in base if part)
            for alias in node.names:
                inner = f"{base_name}.{alias.name}".lstrip(".")
                yield inner if inner in NAMES else base_name


def foreign_imports(module: Module) -> Iterator[tuple[str, int]]:
    """Top-level names of the packages that this module imports, with their lines."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0], node.lineno


def each_module(*rooms: str) -> pytest.MarkDecorator:
    chosen = [module for module in MODULES if not rooms or module.room in rooms]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.name)


def test_rooms_are_walked():
    assert {"kernels.networks.lvdm", "model_loaders.checkpoint", "training.cli", "tools.cli"} <= NAMES
    assert set(OURS) == set(PACKAGES) == {module.room for module in MODULES}


@each_module()
def test_imports_of_ours_stay_on_the_allowed_ways(module: Module):
    allowed = OURS[module.room] | {module.room}
    wrong = {name for name in own_imports(module) if room_of(name) not in allowed}
    assert not wrong, f"{module.name} may import {sorted(allowed)}, but imports {sorted(wrong)}"


@each_module()
def test_foreign_packages_are_those_of_the_room(module: Module):
    allowed = PACKAGES[module.room] | sys.stdlib_module_names
    wrong = {f"{name} (line {line})" for name, line in foreign_imports(module) if name not in allowed}
    assert not wrong, f"{module.name} imports {sorted(wrong)}"


@each_module("nodes")
def test_no_module_imports_one_that_defines_nodes(module: Module):
    """Only the package `nodes` itself gathers the node modules."""
    defining = {other.name for other in MODULES if defines_nodes(other)}
    wrong = defining.intersection(own_imports(module)) - {module.name}
    assert not wrong or module.name == "nodes", f"{module.name} imports the nodes of {sorted(wrong)}"


def defines_nodes(module: Module) -> bool:
    """Tell whether a class of this module derives from ComfyNode."""
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    return any("ComfyNode" in ast.unparse(base) for node in classes for base in node.bases)


def test_the_node_interface_is_imported_in_one_module():
    places = {
        (module.name, node.module)
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("comfy_api")
    }
    assert len({name for name, _ in places}) == 1, places
    assert {source for _, source in places} == {"comfy_api.v0_0_2"}


@each_module("kernels")
def test_triton_is_imported_behind_a_guard(module: Module):
    """torch has no triton on CPU machines and on macOS, so a plain import at the top would break them."""
    plain = [node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in plain if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in plain if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] == "triton"]


@each_module(*SHIPPED, "model_loaders.bridge")
def test_shipped_source_is_ascii(module: Module):
    text = module.path.read_text(encoding="utf-8")
    wrong = [number for number, line in enumerate(text.splitlines(), 1) if not line.isascii()]
    assert not wrong, f"{module.path}: lines {wrong}"
