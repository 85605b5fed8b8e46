"""The pack as ComfyUI loads it: what it costs, what it borrows, what its nodes promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"

IMPORTED = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu, args.base_directory = True, sys.argv[2]
import utils.extra_config, nodes, server
async def load():
    server.PromptServer(asyncio.get_running_loop())
    before = set(sys.modules)
    loaded = await nodes.load_custom_node(sys.argv[3])
    print(json.dumps([loaded, sorted(set(sys.modules) - before)]), flush=True)
asyncio.run(load())
"""
HEAVY = {"diffusers", "cv2", "kornia", "matplotlib", "transformers", "av", "triton"}


@pytest.fixture(scope="session")
def schemas(comfy):
    """Every node of the pack: its class and its schema, by id."""
    nodes = {name: kind for name, kind in comfy.mappings.items() if name.startswith("Weft")}
    assert len(nodes) >= 6
    return {name: kind.define_schema() for name, kind in sorted(nodes.items())}


def test_import_costs_little(comfy, comfyui_folder):
    """Every start of ComfyUI pays for what the pack imports: its own modules, and of others few and no heavy ones."""
    pack = next((comfy.base / "custom_nodes").iterdir())
    command = [sys.executable, "-c", IMPORTED, str(comfyui_folder), str(comfy.base), str(pack)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    line = next((line for line in done.stdout.splitlines() if line.startswith("[true")), None)
    assert line, done.stdout + done.stderr
    others = [name for name in json.loads(line)[1] if str(pack).replace(".", "_x_") not in name]
    assert not {name.partition(".")[0] for name in others} & HEAVY
    assert len(others) < 40, others


def test_everything_borrowed_exists(comfy):
    borrowed = comfy.ours("model_loaders.bridge.compat").BORROWED
    missing = [f"{module.__name__}.{name}" for module, names in borrowed.items() for name in names]
    missing = [name for name in missing if not hasattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2])]
    assert len(borrowed) >= 10 and not missing


@pytest.mark.parametrize("version", ["0.3.47", "0.18.2", "0.20.0"])
def test_an_old_comfyui_is_refused_in_words(comfy, version):
    with pytest.raises(RuntimeError, match=rf"Weft needs ComfyUI 0\.20\.1 or newer, this is {version}: update"):
        comfy.ours("nodes").check_comfyui(version)


@pytest.mark.parametrize("version", ["0.20.1", "0.30.0", "1.0", "0.31.0-rc1"])
def test_newer_comfyuis_are_accepted(comfy, version):
    comfy.ours("nodes").check_comfyui(version)


def test_schema_is_the_recorded_one(schemas):
    """Saved graphs store widgets by position: only append to them.

    After a change on purpose: `WEFT_WRITE_SCHEMA=1 pytest tests/comfy -k schema`, and look at the difference.
    """
    path, found = DATA / "schema.json", {name: describe(schema) for name, schema in schemas.items()}
    if os.environ.get("WEFT_WRITE_SCHEMA"):
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert found == recorded, test_schema_is_the_recorded_one.__doc__


def describe(schema) -> dict:
    """Inputs and outputs in order; the options of a combo without default are files, which differ by machine."""
    inputs = []
    for item in schema.inputs:
        entry = {"id": item.id, "type": item.get_io_type(), "optional": item.optional}
        for key in ("default", "min", "max", "step", "options"):
            value = getattr(item, key, None)
            if value is not None and (key != "options" or item.default is not None):
                entry[key] = value
        inputs.append(entry)
    outputs = [[output.get_io_type(), output.display_name] for output in schema.outputs]
    return {"inputs": inputs, "outputs": outputs}


def test_every_node_explains_itself(schemas):
    silent = []
    for name, schema in schemas.items():
        parts = [*schema.inputs, *schema.outputs]
        silent += [f"{name}.{part.display_name or part.id}" for part in parts if len(part.tooltip or "") < 10]
        silent += [name] if len(schema.description or "") < 30 else []
    assert not silent


def test_every_node_says_whose_it_is(schemas):
    for name, schema in schemas.items():
        assert schema.display_name.endswith(" (Weft)"), name
        assert schema.category.startswith("Weft/"), name


def test_every_node_has_a_help_page_and_every_page_a_node(root, schemas):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (root / "web" / "docs").glob("*.md")}
    assert set(pages) == set(schemas)
    for name, schema in schemas.items():
        unnamed = [item.id for item in schema.inputs if not _names(item, pages[name])]
        assert not unnamed, f"{name}.md says nothing of {unnamed}"


def _names(item, page: str) -> bool:
    return any(label and label in page for label in (item.id, item.display_name))
