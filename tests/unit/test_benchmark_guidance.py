"""The benchmark of mitigating-gradient guidance: what it counts and writes."""

import json

import pytest
import torch

from weft.benchmarks.guidance import MODELS, Result, main, measure
from weft.benchmarks.harivo import SETTINGS, SHAPES

CPU = torch.device("cpu")


def test_the_share_is_of_all_that_a_step_computes():
    """Half of a second at a million operations per second, beside a step of a hundred million: 0.5 %."""
    result = Result("HARIVO", (24, 4, 64, 64), [9.0, 0.5, 0.1], 100_000_000, 1_000_000.0)
    assert result.share == pytest.approx(0.005)


def test_one_command_measures_all_models(tmp_path, capsys):
    """No step is run; the exit code says whether the limit holds, which at tiny sizes it need not."""
    target = tmp_path / "guidance.json"
    code = main(["--size", "tiny", "--repeat", "2", "--json", str(target)])
    rows = {row["model"]: row for row in json.loads(target.read_text())["rows"]}
    assert list(rows) == list(MODELS)
    assert code == int(any(row["share"] >= 0.01 for row in rows.values()))
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert rows["HARIVO"]["latent"] == [8, 4, *SHAPES["tiny"][1:]]
    assert "share %, at most" in target.with_suffix(".md").read_text()
    assert f"{rows['HARIVO']['flops'] / 1e12:.3f}" in capsys.readouterr().out


def test_a_step_is_both_halves_of_guidance():
    """Twice the products of one video; the widest layer alone is in them."""
    found = measure("HARIVO", "tiny", CPU, torch.float32, 1, 1e9)
    frames, height, width = SHAPES["tiny"]
    widest = SETTINGS["tiny"].widths[0]
    assert found.flops > 2 * 2 * frames * height * width * widest * 8 * widest
    assert found.flops % 2 == 0
