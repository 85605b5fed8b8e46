"""What is left of a run that fails: good checkpoints stay, finished steps are kept, resuming is exact."""

import signal
from pathlib import Path

import pytest
import torch

from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.metrics import read_rows
from weft.training.settings import InputError
from weft.training.trainer import Trainer, TrainingError

TINY = Path(__file__).parents[1] / "data" / "training" / "autoencoder.toml"
CPU = torch.device("cpu")


def new_run(folder: Path, *settings: str) -> Trainer:
    table = read_table(TINY)
    override(table, list(settings))
    return start(read_recipe(table, "tiny"), folder, CPU)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def during_step(trainer: Trainer, number: int, action) -> None:
    """Call `action` between the forward and the backward pass of step `number`, once."""
    losses, done = trainer.task.losses, []

    def losses_and_action(batch, step):
        found = losses(batch, step)
        if step == number and not done:
            done.append(step)
            action(trainer)
        return found

    trainer.task.losses = losses_and_action


def break_weights(trainer: Trainer) -> None:
    weight = trainer.task.networks["vae"].encoder.conv_in.conv.weight
    weight.data = torch.full_like(weight, float("nan"))


def fail(trainer: Trainer) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_checkpoint_that_is_not_finite_displaces_none(tmp_path, interrupted):
    """Losses are looked at every hundred steps, checkpoints are written every two."""
    more = ("run.steps=12", "run.checkpoint_every=2", "run.log_every=100", "run.keep_checkpoints=1")
    trainer = new_run(tmp_path, *more, "run.accumulation=1")

    def break_and_interrupt(trainer):
        break_weights(trainer)
        if interrupted:
            signal.raise_signal(signal.SIGINT)

    during_step(trainer, 4, break_and_interrupt)
    message = (
        r"vae.*not finite at step 5; no checkpoint was written" if interrupted else "loss, l1.*not finite in step 6"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.run()
    assert kept(tmp_path) == ["step-0000004.pt"]
    again = resume(tmp_path, CPU)
    again.run(max_steps=1)
    assert all(weight.isfinite().all() for weight in again.task.networks["vae"].parameters())


def test_a_pending_loss_that_is_not_finite_is_no_checkpoint(tmp_path):
    trainer = new_run(tmp_path, "run.steps=2", "run.log_every=100")
    during_step(trainer, 1, lambda trainer: trainer.meter.add({"loss": torch.tensor(float("inf"))}))
    with pytest.raises(TrainingError, match="loss not finite at step 2"):
        trainer.run()
    assert not (tmp_path / "checkpoints").exists()


def flatten(state: object, name: str = "") -> dict[str, object]:
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: leaf for part, value in items for key, leaf in flatten(value, f"{name}.{part}").items()}
    return {name: state}


def fail_while_loading(trainer: Trainer) -> None:
    load, calls = trainer.task.batch, []

    def load_six(*arguments):
        calls.append(arguments)
        if len(calls) > 6:
            raise InputError("clip.mp4: damaged")
        return load(*arguments)

    trainer.task.batch = load_six


@pytest.mark.parametrize(
    ("prepare", "error"),
    [(lambda trainer: during_step(trainer, 3, fail), RuntimeError), (fail_while_loading, InputError)],
    ids=["in the network", "in the data"],
)
def test_steps_before_an_error_are_kept_and_resumed_exactly(tmp_path, caplog, prepare, error):
    """Two passes per step with a discriminator from step 2: random states, means and batch norm change in a pass."""
    more = ("run.steps=6", "run.log_every=4")
    new_run(tmp_path / "straight", *more).run()
    trainer = new_run(tmp_path / "failed", *more)
    prepare(trainer)
    with pytest.raises(error):
        trainer.run()
    assert kept(tmp_path / "failed") == ["step-0000003.pt"]
    assert "everything up to step 3 is in" in caplog.text
    resume(tmp_path / "failed", CPU).run()
    states = [
        flatten(checkpoints.read(checkpoints.newest(tmp_path / name))) | {".seconds": 0}
        for name in ("straight", "failed")
    ]
    for name, value in states[0].items():
        other = states[1][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    rows = [
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("straight", "failed")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 1


def test_an_error_in_the_first_step_leaves_no_run(tmp_path):
    trainer = new_run(tmp_path)
    during_step(trainer, 0, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.run()
    assert not checkpoints.exist(tmp_path)


def test_an_error_while_rescuing_does_not_hide_the_first(tmp_path, caplog, monkeypatch):
    trainer = new_run(tmp_path)
    during_step(trainer, 1, fail)
    monkeypatch.setattr(checkpoints, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.run()
    assert "no checkpoint of step 1 could be written: disk full" in caplog.text


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (9_999_999, 10_000_000):
        path = checkpoints.save(tmp_path / "checkpoints", step, {"step": step}, keep=1)
        assert checkpoints.newest(tmp_path) == path
    assert kept(tmp_path) == ["step-10000000.pt"]
