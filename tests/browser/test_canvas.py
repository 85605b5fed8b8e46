"""Every workflow as an artist meets it: opened on the canvas, without a red node, queued from there, and seen.

One that needs downloads is opened only: small random stand-ins of its files make no video that could be judged.
"""

import json
from pathlib import Path

import pytest

from weft.tools.clips import clips
from weft.tools.downloads import needed
from weft.tools.workflows import build
from weft.training.data.tracker import score
from weft.training.data.video_files import read_video

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))

# What is wrong with the open graph, in words; `file` is what was loaded.
PROBLEMS = """file => {
  const problems = [], nodes = app.rootGraph.nodes
  if (nodes.length !== file.nodes.length) problems.push(`${nodes.length} of ${file.nodes.length} nodes`)
  for (const node of nodes) {
    const say = text => problems.push(`${node.id} ${node.type}: ${text}`)
    const saved = file.nodes.find(other => String(other.id) === String(node.id)) ?? {}
    if (!LiteGraph.registered_node_types[node.type]) say('unknown type')
    if (node.has_errors) say('red')
    const widgets = (node.widgets ?? []).filter(widget => widget.serialize !== false)
    if (widgets.length !== (saved.widgets_values ?? []).length) say('another number of widgets was saved')
    for (const widget of widgets) {
      const values = typeof widget.options?.values === 'function' ? widget.options.values() : widget.options?.values
      if (Array.isArray(values) && !values.includes(widget.value)) say(`${widget.name} is ${widget.value}`)
      if (Number.isNaN(widget.value)) say(`${widget.name} is NaN`)
    }
    for (const other of nodes) {
      const apart = [0, 1].some(axis => node.pos[axis] + node.size[axis] <= other.pos[axis]
        || other.pos[axis] + other.size[axis] <= node.pos[axis])
      if (Number(other.id) > Number(node.id) && !apart) say(`lies on ${other.id}`)
    }
  }
  return problems
}"""

# The whole graph at a scale at which the canvas draws text; gives the size it needs.
FRAME = """() => {
  const nodes = app.rootGraph.nodes, scale = 0.9, margin = 80
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1]))
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]))
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [margin / scale - left, 2 * margin / scale - top]
  app.canvas.setDirty(true, true)
  return {width: Math.ceil((right - left) * scale) + 2 * margin, height: Math.ceil((bottom - top) * scale) + 4 * margin}
}"""


def load(page, workflow: dict) -> list[str]:
    """Open a UI workflow; its problems."""
    page.evaluate("workflow => app.loadGraphData(workflow, true, true, null)", workflow)
    page.wait_for_timeout(800)
    return page.evaluate(PROBLEMS, workflow)


def screenshot(page, path: Path) -> None:
    """The open graph, all of it and readable."""
    page.set_viewport_size(page.evaluate(FRAME))
    page.wait_for_timeout(500)
    page.evaluate(FRAME)  # a new size moves the view
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    assert path.stat().st_size > 20_000


def queue(page) -> dict:
    """Press Run; what the server answers."""
    with page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        page.get_by_test_id("queue-button").click()
    return answer.value.json()


def assert_same_prompt(page, api: dict, info: dict) -> None:
    """The open graph in API format is `api`, apart from widgets that `api` leaves at their defaults."""
    found = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert found.keys() == api.keys()
    for key, node in api.items():
        kind = node["class_type"]
        # Titles count: `dev.py demo` finds the prompt by them.
        assert (found[key]["class_type"], found[key]["_meta"]) == (kind, node["_meta"])
        described = {name: entry for part in info[kind]["input"].values() for name, entry in part.items()}
        # A widget that the page adds for itself, such as the preview of a video that has just been saved, is no input.
        inputs = {name: value for name, value in found[key]["inputs"].items() if name in node["inputs"] | described}
        left_out = inputs.keys() - node["inputs"].keys()
        assert inputs == node["inputs"] | {name: described[name][1]["default"] for name in left_out}


@pytest.fixture(scope="session")
def info(server) -> dict:
    """What the server says of its nodes."""
    return json.loads(server.get("/object_info"))


def test_there_are_workflows():
    assert [path.stem for path in WORKFLOWS] == [path.stem for path in _twins()]


def _twins() -> list[Path]:
    return sorted((WORKFLOWS[0].parent / "api").glob("*.json"))


def open_as_shipped(page, info, artefacts, twin: Path) -> tuple[dict, dict]:
    """Open a workflow, without a problem and with a screenshot; the workflow and its twin in API format."""
    workflow = json.loads((WORKFLOWS[0].parent / twin.name).read_text(encoding="utf-8"))
    api = json.loads(twin.read_text(encoding="utf-8"))
    assert not load(page, workflow)
    assert_same_prompt(page, api, info)
    screenshot(page, artefacts / f"{twin.stem}.png")
    return workflow, api


@pytest.mark.parametrize("twin", [twin for twin in _twins() if not needed(twin)], ids=lambda twin: twin.stem)
def test_workflow(page, client, info, artefacts, twin):
    _, api = open_as_shipped(page, info, artefacts, twin)
    answer = queue(page)
    assert not answer["node_errors"]
    entry = client.wait(answer["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    frames = read_video(client.video(entry["outputs"]))[0]
    for clip in clips(api):
        found = score(frames[clip.frames], clip.caption)
        assert found.colour and found.shape and found.direction and found.background, (clip, found)


@pytest.mark.parametrize("twin", [twin for twin in _twins() if needed(twin)], ids=lambda twin: twin.stem)
def test_workflow_that_needs_downloads(page, info, artefacts, twin):
    """Its files have small stand-ins here; with the real ones missing, the frontend offers what the nodes carry."""
    workflow, _ = open_as_shipped(page, info, artefacts, twin)
    carried = {str(node["id"]): node["properties"].get("models") for node in workflow["nodes"]}
    offered = {key: files for key, files in carried.items() if files}
    assert offered == needed(twin)
    notes = " ".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for file in (file for files in offered.values() for file in files):
        assert file["url"].startswith("https://huggingface.co/")
        assert Path(file["url"]).suffix == Path(file["name"]).suffix
        renamed = not file["url"].endswith(f"/{file['name']}")
        assert not renamed or "under the name that its loader shows" in " ".join(notes.split()), file


def test_our_nodes_explain_themselves_on_the_canvas(page, info):
    """Descriptions and tooltips have arrived in the frontend."""
    names = [name for name in info if name.startswith("Weft")]
    found = page.evaluate(
        """names => Object.fromEntries(names.map(name => {
          const data = LiteGraph.registered_node_types[name].nodeData
          return [name, [data.display_name, data.description, Object.values(data.inputs).map(input => input.tooltip)]]
        }))""",
        names,
    )
    for name, (display_name, description, tooltips) in found.items():
        assert display_name.endswith("(Weft)") and description and all(tooltips), name


def test_a_workflow_made_from_an_api_graph(page, info, graph, artefacts):
    """What `python -m weft.tools.workflows` writes: the same graph, laid out, with notes and download offers."""
    model = {"name": "toy.safetensors", "url": "https://huggingface.co/a/b/toy.safetensors", "directory": "checkpoints"}
    notes = [{"title": "Weights", "text": "Put them into **models/checkpoints**."}, {"title": "Hints", "text": "Two"}]
    workflow = build(page, "toy", graph, {"notes": notes, "models": {"1": [model]}})
    assert not load(page, workflow)
    assert_same_prompt(page, graph, info)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert nodes[1]["properties"]["models"] == [model]
    written = [node for node in nodes.values() if node["type"] == "MarkdownNote"]
    assert [(note["title"], note["widgets_values"]) for note in written] == [(n["title"], [n["text"]]) for n in notes]
    # Left to right along the chain: load, encode, sample, decode, save.
    across = [nodes[key]["pos"][0] for key in (1, 2, 5, 6, 8)]
    assert across == sorted(set(across)) and max(note["pos"][0] for note in written) < across[0]
    assert workflow["id"] == build(page, "toy", graph, {})["id"]
    screenshot(page, artefacts / "toy.png")


def test_a_missing_model_is_shown_as_missing(page, graph):
    """The check of red nodes above can fail."""
    workflow = build(page, "toy", graph, {})
    loader = next(node for node in workflow["nodes"] if node["type"] == "WeftLoadCheckpoint")
    loader["widgets_values"][0] = "gone.safetensors"
    assert any("gone.safetensors" in problem for problem in load(page, workflow))
