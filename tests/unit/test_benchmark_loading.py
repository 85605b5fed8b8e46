"""`python -m weft.benchmarks.loading` on a few small videos: what it counts, prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from weft.benchmarks import loading
from weft.training.data.clips import open_clips
from weft.training.data.video_files import write_video
from weft.training.sections import FolderData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, 8)
    return tmp_path / "videos"


def test_the_whole_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "RECIPE", Path(__file__).parents[1] / "data" / "training" / "autoencoder.toml")
    options = ["--folder", folder, "--clips", 5, "--batch", 2, "--frames", 4, "--size", 16, "--steps", 1]
    assert loading.main([*map(str, options), "--json", str(tmp_path / "out.json")]) == 0
    table = json.loads((tmp_path / "out.json").read_text())
    assert [(rate["source"], rate["clips"]) for rate in table["rates"]] == [("folder", 5), ("archives", 5)]
    assert all(rate["per_second"] > 0 and rate["per_core_second"] > 0 for rate in table["rates"])
    assert 0 <= table["waiting"] <= 1 and table["environment"]["decoder"] in ("PyAV", "torchcodec")
    printed = capsys.readouterr().out
    assert "clips/s of a core" in printed and "of a step is waiting for clips" in printed


def test_rates_are_clips_over_seconds(folder, monkeypatch):
    """A clock that stands still but for the loading: two batches of a second each, one core busy for half of it."""
    clips = open_clips(FolderData(path=str(folder), size=16, frames=4, held_out=0), "train")
    wall, cpu = iter([10.0, 12.0]), iter([5.0, 6.0])
    monkeypatch.setattr(loading.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(loading.time, "process_time", lambda: next(cpu))
    rate = loading.measure("folder", clips, 4, 2)
    assert (rate.seconds, rate.cpu_seconds, rate.per_second, rate.per_core_second) == (2.0, 1.0, 2.0, 4.0)


def test_impossible_numbers(capsys):
    with pytest.raises(SystemExit):
        loading.main(["--clips", "0"])
    assert "numbers must be at least 1" in capsys.readouterr().err
