"""Every API workflow that is shipped, run as shipped; what it makes is what its captions say."""

import json
from pathlib import Path

import pytest

from weft.tools.clips import clips
from weft.training.data.tracker import score
from weft.training.data.video_files import read_video

API = sorted((Path(__file__).resolve().parents[2] / "workflows" / "api").glob("*.json"))


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_the_video_shows_what_the_captions_say(client, path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    frames, rate = read_video(client.video(client.run(graph)))
    shown = clips(graph)
    assert len(frames) == shown[-1].frames.stop and rate == 8
    for clip in shown:
        found = score(frames[clip.frames], clip.caption)
        assert found.colour and found.shape and found.direction and found.background, (clip, found)


def test_every_node_is_used_by_a_workflow(server):
    nodes = {name for name in json.loads(server.get("/object_info")) if name.startswith("Weft")}
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in API]
    used = {node["class_type"] for graph in graphs for node in graph.values()}
    assert nodes <= used, f"no workflow uses {sorted(nodes - used)}"
