"""Runs that several processes share: the same losses, checkpoints for any number of processes, signals, restarts."""

import multiprocessing
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.export import Trained
from weft.training.metrics import read_rows
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
# Everything that draws: offset noise, left out and exchanged captions; and what is relative to the whole batch.
SETTINGS = (
    *("run.steps=4", "run.checkpoint_every=2", "run.log_every=1", "schedule.offset_noise=0.1"),
    *("diffusion.contrast_power=0.5", "diffusion.caption_preference=0.3", "diffusion.preference_clips=3"),
)
LIMIT = 900
"""Seconds after which something is said to hang, on a machine that others use."""
CLOSE = {"rel": 2e-5}  # sums in float32 whose order differs
WORKER = """
import os, sys
os.environ.update(ENVIRONMENT)
from weft.training.cli import main
sys.exit(main(ARGUMENTS))
"""


def command(task: str, out: Path, settings: tuple[str, ...]) -> list[str]:
    assignments = [part for setting in settings for part in ("--set", setting)]
    return ["train", str(TINY / f"{task}.toml"), "--out", str(out), "--device", "cpu", *assignments]


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options, "-m"]


def losses(run: Path) -> dict[str, list[float]]:
    """Metrics of a run by name, in the order of their steps."""
    found: dict[str, list[float]] = {}
    for row in read_rows(run / "metrics.jsonl"):
        for name, value in row.items():
            if name not in ("seconds", "clips_per_second"):
                found.setdefault(name, []).append(value)
    return found


def assert_same_losses(run: Path, other: Path) -> None:
    found, expected = losses(run), losses(other)
    assert found.keys() == expected.keys() >= {"loss", "preference", "validation_loss", "denoiser_gradient_norm"}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, **CLOSE), name


def copy_of(run: Path, folder: Path, step: int) -> Path:
    """A run as it was at an earlier checkpoint."""
    shutil.copytree(run, folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name.split(".")[0] != f"step-{step:07d}":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """Starts the command line in processes that have its imports already; with several, as torchrun would."""
    context = multiprocessing.get_context("forkserver")
    modules = ["weft.training.cli", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
    context.set_forkserver_preload(modules)
    script = tmp_path_factory.mktemp("worker") / "worker.py"
    script.write_text(WORKER)

    def begin(arguments: list[str], count: int = 1) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        workers = []
        for rank in range(count):
            own = {**together, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
            given = {"ENVIRONMENT": own if count > 1 else {}, "ARGUMENTS": arguments}
            workers.append(context.Process(target=runpy.run_path, args=(str(script), given)))
            workers[-1].start()
        return workers

    return begin


def ended(workers: list) -> list[int]:
    """Exit codes."""
    for worker in workers:
        worker.join(LIMIT)
    return [worker.exitcode for worker in workers]


def wait_for(condition, process) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.02)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> tuple[str, ...]:
    """Of a text-to-video run, with the autoencoder that it needs."""
    folder = tmp_path_factory.mktemp("autoencoder")
    start(read_recipe(read_table(TINY / "autoencoder.toml"), "tiny"), folder, CPU).run()
    return (f"autoencoder.path={folder}", *SETTINGS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, settings) -> Path:
    """The run of one process, whose batch is twice that of each of two."""
    table = read_table(TINY / "text_to_video.toml")
    override(table, list(settings))
    folder = tmp_path_factory.mktemp("alone") / "run"
    start(read_recipe(table, "tiny"), folder, CPU).run()
    return folder


def test_two_processes_of_torchrun_have_the_losses_of_one(tmp_path, settings, alone):
    run = tmp_path / "run"
    done = subprocess.run(
        [*torchrun(), "weft.training", *command("text_to_video", run, settings)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"step 4 of 4 in {run}") == 1
    assert_same_losses(run, alone)

    earlier = copy_of(run, tmp_path / "earlier", step=2)
    resume(earlier, CPU).run()
    assert_same_losses(earlier, alone)
    tensors, expected = (checkpoints.read(checkpoints.newest(each))["networks"] for each in (earlier, alone))
    for role, network in expected.items():
        for name, tensor in network.items():
            # Adam moves a weight by its rate even where its gradient is rounding alone.
            torch.testing.assert_close(tensors[role][name], tensor, rtol=0, atol=1e-4)


def test_what_is_shared_out_is_read_by_any_number_of_processes(tmp_path, settings, alone, forked):
    sharded = (*settings, "run.sharded=true", "run.activation_checkpointing=true")
    run = tmp_path / "run"
    assert ended(forked(command("text_to_video", run, sharded), 2)) == [0, 0]
    assert_same_losses(run, alone)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000002", "step-0000004"]
    files = sorted(path.name for path in (run / "checkpoints" / "step-0000004").iterdir())
    assert files == [".metadata", "__0_0.distcp", "__1_0.distcp", "state.pt"]

    whole, parts = Trained(alone), Trained(run)
    assert parts.step == 4 and parts.networks.keys() == whole.networks.keys()
    for role, network in whole.networks.items():
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(parts.networks[role].state_dict()[name], tensor, rtol=0, atol=1e-4)

    by_one = copy_of(run, tmp_path / "by_one", step=2)
    resume(by_one, CPU).run()
    assert_same_losses(by_one, alone)
    by_four = copy_of(by_one, tmp_path / "by_four", step=4)
    shutil.copytree(run / "checkpoints" / "step-0000002", by_four / "checkpoints" / "step-0000002")
    (by_four / "checkpoints" / "step-0000004.pt").unlink()
    assert ended(forked(["resume", str(by_four), "--device", "cpu"], 4)) == [0, 0, 0, 0]
    assert_same_losses(by_four, alone)


def test_two_processes_go_on_with_the_run_of_one(tmp_path, settings, alone, forked):
    table = read_table(TINY / "text_to_video.toml")
    override(table, [*settings, "run.sharded=true"])
    run = tmp_path / "run"
    start(read_recipe(table, "tiny"), run, CPU).run(max_steps=2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000002.pt"]
    assert ended(forked(["resume", str(run), "--device", "cpu"], 2)) == [0, 0]
    assert checkpoints.newest(run).name == "step-0000004"
    assert_same_losses(run, alone)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, settings, forked):
    run = tmp_path / "run"
    workers = forked(command("text_to_video", run, (*settings, "run.steps=400", "run.checkpoint_every=300")), 2)
    limit = time.monotonic() + LIMIT
    while len(read_rows(run / "metrics.jsonl")) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(workers[1].pid, signal.SIGTERM)
    assert ended(workers) == [128 + signal.SIGTERM] * 2
    last = read_rows(run / "metrics.jsonl")[-1]["step"]
    assert checkpoints.read(checkpoints.newest(run))["step"] == last < 300


def test_torchrun_starts_a_killed_worker_again(tmp_path, settings):
    """The same command goes on from the last checkpoint, and ends."""
    run, arguments = tmp_path / "run", (*settings, "run.steps=12")
    train = [*torchrun("--max-restarts=1"), "weft.training", *command("text_to_video", run, arguments)]
    process = subprocess.Popen(train, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: checkpoints.exist(run) and len(read_rows(run / "metrics.jsonl")) > 4, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert f"step 12 of 12 in {run}" in output
    assert losses(run)["step"].count(12) >= 1 and set(losses(run)["step"]) == set(range(1, 13))
    assert checkpoints.read(checkpoints.newest(run))["clips_seen"] == 12 * 4


def test_ten_kills_at_random_moments_lose_no_checkpoint(tmp_path, forked):
    """A checkpoint comes behind every second step; a row of metrics behind each, before its checkpoint."""
    run, chance = tmp_path / "run", random.Random(7)
    often = ("run.steps=100000", "run.checkpoint_every=2", "run.log_every=1", "run.accumulation=1")
    arguments = [*command("autoencoder", run, often), "--resume"]
    reached = 0
    for _ in range(10):
        (worker,) = forked(arguments)
        limit, kept = time.monotonic() + LIMIT, reached
        while kept == reached and worker.is_alive() and time.monotonic() < limit:
            time.sleep(0.01)
            kept = step_of(run)
        assert worker.is_alive() and kept > reached
        time.sleep(chance.uniform(0.0, 0.5))
        worker.kill()
        worker.join()
        reached = checkpoints.read(checkpoints.newest(run))["step"]
        shown = max(row["step"] for row in read_rows(run / "metrics.jsonl"))
        assert kept <= reached == step_of(run) and shown - reached <= 2, (kept, reached, shown)
    again = resume(run, CPU)
    assert again.step == reached >= 20
    again.run(max_steps=1)


def step_of(run: Path) -> int:
    """That of the newest checkpoint, by its name; 0 without one."""
    return int(checkpoints.newest(run).stem.removeprefix("step-")) if checkpoints.exist(run) else 0


def test_resume_refuses_another_recipe(tmp_path, alone, settings, capsys):
    from weft.training.cli import main

    run = copy_of(alone, tmp_path / "run", step=4)
    assert main([*command("text_to_video", run, (*settings, "run.batch_size=8")), "--resume"]) == 2
    assert "run.batch_size: the run in" in capsys.readouterr().err
    assert main([*command("text_to_video", run, settings), "--resume"]) == 0
    assert "step 4 of 4" in capsys.readouterr().out


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    from weft.training import distributed

    monkeypatch.setattr(distributed, "size", lambda: 3)
    recipe = read_recipe(read_table(TINY / "autoencoder.toml"), "tiny")
    with pytest.raises(RecipeError, match=r"run.batch_size: found 4, 3 processes share a multiple of 3"):
        start(recipe, tmp_path, CPU)


def test_draws_are_rows_of_those_of_the_whole_batch(monkeypatch):
    from weft.training import distributed

    values = torch.zeros(2, 3)
    torch.manual_seed(1)
    whole = torch.randn(6, 3)
    monkeypatch.setattr(distributed, "size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(1)
        assert torch.equal(distributed.noise_like(values), whole[2 * rank : 2 * rank + 2])
