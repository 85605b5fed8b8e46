"""What lies beside a workflow in API format: notes for the canvas, and the files that it offers for download."""

import json
from pathlib import Path

import tomllib


def beside(path: Path) -> dict:
    """Return what stands in workflows/api/NAME.toml beside NAME.json, if anything.

    `notes` (title, text), `models` (name, url, directory) by node, `groups` (title, nodes) and `seeds`.
    """
    sidecar = path.with_suffix(".toml")
    return tomllib.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}


def needed(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return by node the offered files that the workflow names itself: without these it does not run.

    Others are an alternative to what the graph names, such as released weights to the embedded model.
    """
    graph = json.loads(path.read_text(encoding="utf-8"))
    named = {
        key: [file for file in files if file["name"] in graph[key]["inputs"].values()]
        for key, files in beside(path).get("models", {}).items()
    }
    return {key: files for key, files in named.items() if files}
