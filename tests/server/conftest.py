"""Workflows that need downloads, on small stand-ins of these."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.tools.downloads import needed

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
STEPS = ("steps", "first_frame_steps")


@pytest.fixture
def on_stand_ins(server) -> Callable[..., dict]:
    """Gives the graph of a workflow; with `few`, of two steps in each sampling.

    It finds small files of the names that it needs; loaders that cannot read one are replaced.
    """
    info = json.loads(server.get("/object_info"))

    def graph_of(name: str, few: bool = False) -> dict:
        path = API / f"{name}.json"
        graph = json.loads(path.read_text(encoding="utf-8"))
        for key in needed(path):
            stand_in = f"StandIn{graph[key]['class_type']}"
            if stand_in in info:
                taken = info[stand_in]["input"]["required"]
                kept = {name: value for name, value in graph[key]["inputs"].items() if name in taken}
                graph[key] |= {"class_type": stand_in, "inputs": kept}
        for node in graph.values() if few else ():
            node["inputs"] |= {name: 2 for name in STEPS if name in node["inputs"]}
        return graph

    return graph_of
