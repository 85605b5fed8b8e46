"""The cascade's benchmark: official sizes, a run on the CPU, and a low-memory setting that gives the same numbers."""

import json

import pytest
import torch

from weft.benchmarks import cascade
from weft.benchmarks.cascade import Result, Stage, Walk, drawn, main, stages, verdicts
from weft.benchmarks.memory import peak_bytes
from weft.kernels.layers.chunking import chunk_size, low_memory

CPU = torch.device("cpu")
# Parameters as of the released files.
RELEASED = {
    "keyframes": 1_726_848_390,
    "interpolation": 1_726_859_910,
    "first frame": 1_243_277_190,
    "sr1": 796_343_046,
    "sr2": 1_411_233_860,
}


def test_official_sizes_are_the_released_ones():
    found = {stage.name: stage for stage in stages("official")}
    for name, count in RELEASED.items():
        network = drawn(found[name], torch.device("meta"), torch.float16)
        assert sum(weight.numel() for weight in network.parameters()) == count
    assert [stage.shape for stage in found.values()] == [
        (3, 8, 40, 64),
        (3, 5, 40, 64),
        (3, 1, 160, 256),
        (3, 8, 160, 256),
        (4, 29, 40, 72),
    ]


def test_one_command_measures_both_settings(tmp_path, capsys):
    target = tmp_path / "cascade.json"
    assert main(["--device", "cpu", "--steps", "1", "--json", str(target)]) == 0
    written = json.loads(target.read_text())
    rows = {(row["setting"], row["stage"]): row for row in written["rows"]}
    assert len(rows) == 2 * len(RELEASED)
    assert {"device", "torch", "date", "revision"} <= written["environment"].keys()
    for name in RELEASED:
        default, low = rows["default", name], rows["low memory", name]
        assert len(default["seconds"]) == default["runs"] and min(default["seconds"]) > 0
        assert default["total"] == default["weights"] + default["peak"]
        assert 0.4 * default["peak"] < low["peak"] < 0.9 * default["peak"], "half the videos at once"
    printed = capsys.readouterr().out
    assert printed.count("low memory") > 5 and "below 15 GB" in printed and "9.52 GB in half precision" in printed
    assert "s/step" in target.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", RELEASED)
@torch.no_grad()
def test_low_memory_gives_the_same_numbers(name, monkeypatch):
    """Halves of guidance in two calls and the smallest parts against one call at once, within 1e-5 of the spread.

    In float64: in float32 products of other sizes round differently, by 1e-5 already.
    """
    from weft.kernels.layers import chunking

    stage = next(stage for stage in stages("tiny") if stage.name == name)
    torch.manual_seed(0)
    walk = Walk(stage, drawn(stage, CPU, torch.float64), low=False, steps=1)
    seen = torch.randn(1, stage.config.in_channels, *stage.shape[1:], dtype=torch.float64)
    monkeypatch.setitem(chunking._BUDGET_BYTES, "cpu", 1 << 40)
    whole = walk._call(seen.repeat(2, 1, 1, 1, 1), walk.text, 500)
    monkeypatch.setattr(chunking, "_LOW_MEMORY_BYTES", 1)
    with low_memory():
        parts = torch.cat([walk._call(seen, half, 500) for half in walk.text.split(1)])
    assert ((parts - whole).abs().max() / whole.std()).item() < 1e-5


def test_the_low_memory_setting_ends_where_it_was_opened():
    row = torch.zeros(1)
    sizes = {"default": chunk_size(10**9, 1, row)}
    with low_memory(), pytest.raises(ValueError):
        sizes["low"] = chunk_size(10**9, 1, torch.zeros(1, device="meta"))
        with low_memory(False):
            sizes["inner"] = chunk_size(10**9, 1, torch.zeros(1, device="meta"))
        raise ValueError
    assert sizes["low"] == (16 << 20) // 4 and sizes["inner"] == (96 << 20) // 4
    assert chunk_size(10**9, 1, row) == sizes["default"]


@torch.no_grad()
def test_what_is_counted_on_the_meta_device_is_what_a_cpu_would_hold():
    """The same tensors are alive, where attention takes no more than its result; norms take one copy at most."""
    stage: Stage = stages("tiny")[0]
    peaks = []
    for device in ("meta", "cpu"):
        walk = Walk(stage, drawn(stage, torch.device(device), torch.float32), low=False, steps=1)
        noise = torch.randn(1, *stage.shape, device=device)
        peaks.append(peak_bytes(lambda walk=walk, noise=noise: walk(noise), torch.device(device)))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.25)


def test_a_setting_above_its_limit_is_said():
    rows = [
        Result("sr2", setting, 1, 1, 10**9, size, 0)
        for setting, size in (("default", 10**9), ("low memory", 8 * 10**9))
    ]
    text = "\n".join(verdicts(rows))
    assert "default: at most 2.00 GB (sr2), below 15 GB" in text and "9.00 GB (sr2), ABOVE 8 GB" in text


def test_impossible_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--steps", "0"])
    assert "--steps is 0, expected 1 to 100" in capsys.readouterr().err
    assert cascade.SETTINGS == ("default", "low memory")
