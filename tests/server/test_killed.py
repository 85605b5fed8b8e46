"""Extend Video on the real server, which is killed without notice at random moments and started anew.

`WEFT_KILLS=10 pytest tests/server/test_killed.py` kills ten times instead of two.
"""

import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

KILLS = int(os.environ.get("WEFT_KILLS", "2"))
WINDOWS = 8 + 4 * KILLS
"""Of the video; a window takes a tenth of a second."""


@pytest.fixture
def base(tmp_path, toy_models) -> Path:
    """User folders that no other test writes to."""
    (tmp_path / "models").mkdir()
    shutil.copytree(toy_models, tmp_path / "models" / "checkpoints")
    return tmp_path


def extending(graph: dict, segments: str) -> dict:
    """The graph of a long latent that is saved."""
    graph = {key: graph[key] for key in "1234"}
    links = {"guider": ["5", 0], "sampler": ["6", 0], "sigmas": ["7", 0], "start": ["4", 0]}
    lengths = {"frames": 4 + 12 * WINDOWS, "window": 16, "overlap": 4, "perturbation": 0.1, "loop": False}
    given = {"seed": 3, "prompts": "", "segments": segments}
    return graph | {
        "5": _node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=2.0),
        "6": _node("KSamplerSelect", sampler_name="euler_ancestral"),
        "7": _node("BasicScheduler", model=["1", 0], scheduler="normal", steps=6, denoise=1.0),
        "8": _node("WeftExtendVideo", **links, **lengths, **given),
        "9": _node("SaveLatent", samples=["8", 0], filename_prefix=segments or "straight"),
    }


def _node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def test_a_killed_run_goes_on_with_the_same_bits(root, comfyui_folder, base, graph, client_of):
    """Each start makes some windows more; the last one finishes. What was made straight on has the same bits."""
    from weft.tools.comfyui import ComfyUI
    from weft.tools.server import running

    comfyui, moments = ComfyUI(comfyui_folder.resolve(), Path(sys.executable)), random.Random(0)
    folder, counts = base / "output" / "weft_segments" / "killed", []
    for _ in range(KILLS):
        with running(comfyui, base, root, log=base / "log") as server:
            goal = (counts or [0])[-1] + moments.randint(1, 4)
            assert not client_of(server, base).queue(extending(graph, "killed"))["node_errors"]
            begun = time.monotonic()
            while _count(folder) < goal:
                assert server.process.poll() is None and time.monotonic() < begun + 120, server.last_words()
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.2))  # of the next window, or of a file that is being written
            server.process.kill()
            server.process.wait()
        counts.append(_count(folder))
        assert counts[-1] < WINDOWS, "killed too late"
    with running(comfyui, base, root, log=base / "log") as server:
        client = client_of(server, base)
        found, straight = (_latent(client, extending(graph, name)) for name in ("killed", ""))
        # A file that no manifest names yet is made again.
        said = [f"going on after {count} finished segments" for count in (counts[-1], counts[-1] - 1)]
        assert any(words in server.log.read_text() for words in said)
    print(f"killed {KILLS} times, with {counts} of {WINDOWS} windows there")
    assert found.shape[2] == 1 + 3 * WINDOWS and (found == straight).all()


def _count(folder: Path) -> int:
    return len(list(folder.glob("*/segment_*.safetensors")))


def _latent(client: object, graph: dict) -> object:
    """What a graph saves."""
    client.run(graph)
    saved = client.base / "output" / f"{graph['9']['inputs']['filename_prefix']}_00001_.latent"
    return load_file(saved)["latent_tensor"]
