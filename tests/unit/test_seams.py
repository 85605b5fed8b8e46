"""Seams of videos for which they are known, and of a super-resolution that makes them or does not."""

import json
from pathlib import Path

import pytest
import torch

from weft.kernels.analysis.seams import seam_ratio
from weft.kernels.sampling.cascade import super_resolve, window_starts
from weft.training import seams
from weft.training.build import start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table

RECIPE = Path(__file__).parents[1] / "data" / "training" / "show1.toml"
STARTS = [0, 7, 14, 21]


def drifting(jumps=0.0):
    """29 frames that brighten by 0.01 each, and at the last three of the starts by as much more as `jumps` says."""
    steps = torch.full((28,), 0.01, dtype=torch.float64)
    steps[[6, 13, 20]] += jumps
    return torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)]).view(29, 1, 1, 1).expand(29, 4, 6, 3)


def test_even_motion_has_none():
    assert window_starts(29) == STARTS
    assert float(seam_ratio(drifting(), STARTS)) == pytest.approx(1.0, abs=1e-12)


def test_jumps_at_borders_are_counted_in_full():
    assert float(seam_ratio(drifting(0.001), STARTS)) == pytest.approx(1.1, abs=1e-9)
    assert float(seam_ratio(drifting(0.03), STARTS)) == pytest.approx(4.0, abs=1e-9)


def test_jumps_elsewhere_are_no_seams():
    """As a cut in the middle of a window: it makes the inside worse."""
    assert float(seam_ratio(drifting(0.03), [0, 8, 15, 22])) < 1


def test_videos_are_measured_one_by_one():
    found = seam_ratio(torch.stack([drifting(), drifting(0.001)]), STARTS)
    assert found.tolist() == pytest.approx([1.0, 1.1])


def test_still_videos():
    still = torch.zeros(29, 2, 2, 3)
    stepped = still.clone()
    stepped[7:] = 1.0
    assert float(seam_ratio(still, STARTS)) == 1.0
    assert float(seam_ratio(stepped, STARTS)) == float("inf")


@pytest.mark.parametrize(("frames", "starts"), [(8, [0]), (3, [0, 1, 2]), (8, [0, 9])])
def test_no_borders_are_refused(frames, starts):
    with pytest.raises(ValueError, match=r"Windows that begin at \[0.* borders between . frames: expected some"):
        seam_ratio(torch.zeros(frames, 2, 2, 3), starts)


def test_windows_that_drift_leave_seams_unless_a_frame_is_carried():
    """A network that continues evenly from the first frame it is given: apart, all windows begin alike."""

    def sample(noise, given):
        return given[:, :, :1] + 0.01 * torch.arange(noise.shape[2]).view(1, 1, -1, 1, 1)

    small, noise = torch.zeros(2, 3, 29, 2, 2), torch.zeros(2, 3, 8, 8, 8)
    ratios = {}
    for carry in (True, False):
        video = super_resolve(small, noise, noise, sample, level=0, carry=carry)
        ratios[carry] = seam_ratio(video.movedim(1, -1), STARTS)
    assert torch.allclose(ratios[True], torch.ones(2, dtype=torch.float64))
    # Apart, brightness falls back by the six steps before.
    assert torch.allclose(ratios[False], torch.full((2,), 6.0, dtype=torch.float64))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A step of super-resolution to 16 x 16, clips of two windows."""
    folder, table = tmp_path_factory.mktemp("seams"), read_table(RECIPE)
    changes = ["stage=sr1", "network.in_channels=6", "network.noise_levels=1000", "schedule.prediction=velocity"]
    override(table, [*changes, "data.frames=15", "conditioning.highest_level=300"])
    start(read_recipe(table, "show1.toml"), folder / "run", torch.device("cpu")).run(max_steps=1)
    return folder / "run"


def test_a_run_and_its_exported_file(run, tmp_path, capsys):
    """Medians of as many clips, in both ways, which differ; the file has half-precision weights."""
    command = ["--count", "5", "--steps", "2", "--device", "cpu"]
    assert main(["seams", str(run), *command, "--out", str(tmp_path / "run.json")]) == 0
    assert "carried" in capsys.readouterr().out
    assert main(["export", str(run), "--out", str(tmp_path / "sr1.safetensors")]) == 0
    assert main(["seams", str(tmp_path / "sr1.safetensors"), *command, "--out", str(tmp_path / "file.json")]) == 0
    found, exported = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "file.json"))
    for name in ("clips", "carried", "apart"):
        assert len(found["ratios"][name]) == 5
        assert found[name] == pytest.approx(sorted(found["ratios"][name])[2], abs=1e-4)
        assert exported["ratios"][name] == pytest.approx(found["ratios"][name], rel=0.05)
    assert found["ratios"]["carried"] != found["ratios"]["apart"]


def test_bad_input(run, tmp_path, capsys):
    assert main(["seams", str(run), "--count", "50"]) == 2
    assert "--count: found 50, the data set has 40 held-out clips" in capsys.readouterr().err
    assert main(["seams", "demo_models/lvdm.safetensors"]) == 2
    assert "expected a super-resolution of Show-1 on pixels" in capsys.readouterr().err
    assert main(["seams", str(tmp_path / "none.safetensors")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_one_window_has_no_seams(run, monkeypatch):
    stage, data = seams._open(run, torch.device("cpu"))
    short = type(data)(**{**vars(data), "frames": 8})
    monkeypatch.setattr(seams, "_open", lambda path, device: (stage, short))
    with pytest.raises(seams.InputError, match="its clips have 8 frames, which is one window"):
        seams.measure_seams(run, 1, 2, 3.0, 0, torch.device("cpu"))
