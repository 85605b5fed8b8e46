"""Every API workflow that is shipped, run as shipped; what it makes is what its prompt says."""

import json
from pathlib import Path

import pytest

from weft.training.data.tracker import score_video
from weft.training.data.video_files import read_video

API = sorted((Path(__file__).resolve().parents[2] / "workflows" / "api").glob("*.json"))


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_workflow_runs(client, path):
    frames, rate = read_video(client.video(client.run(json.loads(path.read_text(encoding="utf-8")))))
    assert len(frames) >= 16 and rate > 0 and frames.std() > 5


def test_every_node_is_used_by_a_workflow(server):
    nodes = {name for name in json.loads(server.get("/object_info")) if name.startswith("Weft")}
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in API]
    used = {node["class_type"] for graph in graphs for node in graph.values()}
    assert nodes <= used, f"no workflow uses {sorted(nodes - used)}"


def test_the_video_shows_what_the_prompt_says(client):
    path = next(path for path in API if path.stem == "LVDM text to video")
    graph = json.loads(path.read_text(encoding="utf-8"))
    caption = next(node["inputs"]["text"] for node in graph.values() if node["_meta"]["title"] == "Prompt")
    score = score_video(client.video(client.run(graph)), caption)
    assert score.colour and score.shape and score.direction and score.background, score
