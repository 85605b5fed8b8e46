"""From a prompt on the command line to a video file, by way of a graph in ComfyUI's API format."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from .console import Failure, ProgressBar
from .server import HOST, Server
from .websocket import WebSocket

SEEDS = ("seed", "noise_seed")
Graph = dict[str, dict]


def load_graph(folder: Path, name: str) -> Graph:
    """Read the workflow called `name`; raises Failure with the names there are."""
    path = folder / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(f'"{file.stem}"' for file in folder.glob("*.json"))) or "none"
        raise Failure(f'no workflow "{name}"; available: {names}')
    return json.loads(path.read_text(encoding="utf-8"))


def set_prompt(graph: Graph, prompt: str) -> None:
    """Put the text into every prompt node that is not a negative one: by its title, or by what it is linked to."""
    links = [(name, value[0]) for node in graph.values() for name, value in node["inputs"].items() if _is_link(value)]
    negative = {key for name, key in links if name == "negative"} - {key for name, key in links if name == "positive"}
    titles = {key: node.get("_meta", {}).get("title", "").lower() for key, node in graph.items()}
    chosen = [key for key, title in titles.items() if "prompt" in title and "negative" not in title]
    chosen = [key for key in chosen if isinstance(graph[key]["inputs"].get("text"), str) and key not in negative]
    if not chosen:
        raise Failure("this workflow has no prompt to change: no node with a text whose title contains 'Prompt'")
    for key in chosen:
        graph[key]["inputs"]["text"] = prompt


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def set_seed(graph: Graph, seed: int | None) -> int:
    """Put the seed into every sampler, or keep the saved one where it is None, and return it."""
    nodes = [node["inputs"] for node in graph.values()]
    places = [(inputs, name) for inputs in nodes for name in SEEDS if isinstance(inputs.get(name), int)]
    if seed is None:
        return next((inputs[name] for inputs, name in places), 0)
    if not places:
        raise Failure("this workflow has no seed to change")
    for inputs, name in places:
        inputs[name] = seed
    return seed


def set_input(graph: Graph, assignment: str) -> None:
    """Apply `ID.input=value` to a graph; values are JSON, anything else is taken as text.

    An input keeps its kind: `8.motion=60` stays a text where it was one.
    """
    place, found, text = assignment.partition("=")
    key, _, name = place.strip().partition(".")
    if not found or not name:
        raise Failure(f"--set {assignment}: expected ID.input=value")
    inputs = graph.get(key, {}).get("inputs", {})
    if name not in inputs or isinstance(inputs[name], list):
        names = ", ".join(
            f"{node}.{known}"
            for node in graph
            for known, value in graph[node]["inputs"].items()
            if not isinstance(value, list)
        )
        raise Failure(f"--set {assignment}: the workflow has no such value; it has {names}")
    try:
        inputs[name] = text if isinstance(inputs[name], str) else json.loads(text)
    except json.JSONDecodeError:
        inputs[name] = text


def run(server: Server, graph: Graph) -> bytes:
    """Return the video that a graph saves; raises Failure as `execute` and `saved_video` do."""
    return fetch(server, saved_video(execute(server, graph)))


def execute(server: Server, graph: Graph) -> dict[str, dict]:
    """Queue the graph, show its progress and return the outputs of its nodes.

    Raises Failure with the node and its message when ComfyUI refuses the graph or fails in it.
    """
    client = uuid.uuid4().hex
    socket = WebSocket(HOST, server.port, f"/ws?clientId={client}")
    try:
        answer = server.post("/prompt", {"prompt": graph, "client_id": client})
        if "prompt_id" not in answer or answer.get("node_errors"):
            raise Failure(f"ComfyUI refused the workflow: {refusal(answer, graph)}", server.last_words())
        watch(socket.messages(), answer["prompt_id"], graph)
    except ConnectionError as error:
        raise Failure(f"ComfyUI went away while it worked: {error}", server.last_words()) from error
    finally:
        socket.close()
    outputs: dict[str, dict] = json.loads(server.get(f"/history/{answer['prompt_id']}"))[answer["prompt_id"]]["outputs"]
    return outputs


def fetch(server: Server, file: dict[str, str]) -> bytes:
    """Return a file that a run left on the server."""
    return server.get("/view?" + urlencode(file))


def watch(messages: Iterator[dict], prompt: str, graph: Graph) -> None:
    """Draw progress until the prompt is done; raises Failure when a node fails or somebody interrupts it."""
    bar = ProgressBar()
    try:
        for message in messages:
            kind, data = message["type"], message.get("data", {})
            if data.get("prompt_id") != prompt:
                continue
            if kind == "executing" and data["node"] is None:
                return
            if kind == "executing":
                bar.begin(title(graph, data["node"]))
            elif kind == "progress":
                bar.update(data["value"], data["max"])
            elif kind == "execution_error":
                what = f"{data['exception_type']}: {data['exception_message']}"
                raise Failure(f"{title(graph, data['node_id'])} ({data['node_type']}) failed: {what}")
            elif kind == "execution_interrupted":
                raise Failure("the run was interrupted on the server")
    finally:
        bar.end()
    raise ConnectionError("the server closed the connection")


def title(graph: Graph, key: str) -> str:
    """Return what the canvas writes on a node; one made while running, as in a loop, has its number only."""
    node = graph.get(key, {})
    return node.get("_meta", {}).get("title") or node.get("class_type", f"node {key}")


def refusal(answer: dict, graph: Graph) -> str:
    """Return the first reason for which ComfyUI does not run a graph."""
    for key, node in (answer.get("node_errors") or {}).items():
        for error in node["errors"]:
            return f"{title(graph, key)}: {error['message']} ({error['details']})"
    error = answer.get("error", {})
    return f"{error.get('message')} {error.get('details', '')}"


def saved_video(outputs: dict[str, dict]) -> dict[str, str]:
    """Return filename, subfolder and type of the first video among the outputs of a run."""
    for file in _files(outputs, ".mp4", "output"):
        return file
    raise Failure("this workflow saved no video: it needs a Save Video node")


def shown_picture(outputs: dict[str, dict]) -> dict[str, str] | None:
    """Return filename, subfolder and type of the first picture that a run showed, if it showed any."""
    return next(_files(outputs, ".png", "temp"), None)


def _files(outputs: dict[str, dict], ending: str, kind: str) -> Iterator[dict[str, str]]:
    for node in outputs.values():
        for saved in (item for group in node.values() if isinstance(group, list) for item in group):
            if isinstance(saved, dict) and str(saved.get("filename")).endswith(ending) and saved["type"] == kind:
                yield {key: saved[key] for key in ("filename", "subfolder", "type")}
