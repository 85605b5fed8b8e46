"""The training loop on tiny recipes: exact resume, interrupts, averaging, learning, caching."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder
from weft.training import checkpoints
from weft.training.batches import ShuffledClips
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.ema import Ema, ema_decay
from weft.training.metrics import draw_curves, read_rows
from weft.training.sections import Optimization
from weft.training.settings import InputError, RecipeError
from weft.training.task import RareClips
from weft.training.trainer import Trainer, TrainingError, learning_rate

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
TIMES = {"clips_per_second", "seconds"}


def recipe_of(task: str, autoencoder: Path, *more: str):
    table = read_table(TINY / f"{task}.toml")
    override(table, list(more) if task == "autoencoder" else [f"autoencoder.path={autoencoder}", *more])
    return read_recipe(table, task)


def new_run(task: str, folder: Path, autoencoder: Path, *more: str) -> Trainer:
    return start(recipe_of(task, autoencoder, *more), folder, CPU)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("autoencoder")
    new_run("autoencoder", folder, folder, "run.steps=2").run()
    return folder


def flatten(state: object, name: str = "") -> dict[str, object]:
    if isinstance(state, dict):
        items = [(str(key), value) for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        items = [(str(index), value) for index, value in enumerate(state)]
    else:
        return {name: state}
    return {key: leaf for part, value in items for key, leaf in flatten(value, f"{name}.{part}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Equal tensors, random states and metrics; only times and where the recipe lies may differ."""
    states = [flatten(checkpoints.read(checkpoints.newest(folder))) for folder in (first, second)]
    assert states[0].keys() == states[1].keys()
    tensors = 0
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name
            tensors += 1
        elif name != ".seconds":
            assert value == states[1][name], name
    assert tensors > 100
    rows = [
        [{key: value for key, value in row.items() if key not in TIMES} for row in read_rows(folder / "metrics.jsonl")]
        for folder in (first, second)
    ]
    assert rows[0] == rows[1]
    assert any("validation" in key for row in rows[0] for key in row)


@pytest.mark.parametrize("task", ["autoencoder", "text_to_video"])
def test_resumed_run_equals_straight_run(task, tmp_path, autoencoder):
    more = ("run.steps=6", "optimization.final_fraction=0.1")
    new_run(task, tmp_path / "straight", autoencoder, *more).run()

    interrupted = new_run(task, tmp_path / "resumed", autoencoder, *more)
    losses, calls = interrupted.task.losses, []

    def losses_then_interrupt(batch, step):
        calls.append(step)
        if calls.count(2) == 1 and step == 2:
            signal.raise_signal(signal.SIGINT)
        return losses(batch, step)

    interrupted.task.losses = losses_then_interrupt
    assert interrupted.run() == signal.SIGINT
    assert interrupted.step == 3 and max(calls) == 2
    torch.rand(5)  # whatever happens to the generators in between
    again = resume(tmp_path / "resumed", CPU)
    assert again.step == 3
    assert again.run() is None
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_process_resumes_exactly(number, tmp_path, autoencoder):
    more = ("run.steps=24", "run.checkpoint_every=4", "run.log_every=1")
    assignments = [part for item in more for part in ("--set", item)]
    command = [sys.executable, "-m", "weft.training", "train", str(TINY / "autoencoder.toml")]
    command += ["--out", str(tmp_path / "killed"), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command + assignments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    limit = time.monotonic() + 600
    while len(read_rows(metrics)) < 10 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number), errors

    again = resume(tmp_path / "killed", CPU)
    assert 4 <= again.step < 24
    again.run()
    new_run("autoencoder", tmp_path / "straight", autoencoder, *more).run()
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("task", ["autoencoder", "text_to_video"])
def test_loss_falls(task, tmp_path, autoencoder):
    more = ("run.steps=30", "run.log_every=5", "optimization.learning_rate=3e-3", "loss.discriminator_start=1000")
    trainer = new_run(task, tmp_path, autoencoder, *more[: 4 if task == "autoencoder" else 3])
    trainer.run()
    losses = [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]


def test_discriminator_starts_at_its_step(tmp_path):
    trainer = new_run("autoencoder", tmp_path, tmp_path, "run.steps=4", "run.log_every=1", "loss.discriminator_start=2")
    weights = [parameter for parameter in trainer.parameters["discriminator"] if parameter.ndim > 1]
    before = [weight.clone() for weight in weights]
    trainer.run(max_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    trainer.run()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert ["discriminator" in row for row in rows] == [False, False, True, True]
    assert rows[2]["discriminator"] > 0 and rows[2]["adversarial_weight"] > 0


def test_latents_are_encoded_once(tmp_path, autoencoder, monkeypatch):
    cache = f"autoencoder.cache={tmp_path / 'cache'}"
    first = new_run("text_to_video", tmp_path / "a", autoencoder, "run.steps=1", cache).task
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2

    with monkeypatch.context() as patch:
        patch.delattr(VideoAutoencoder, "moments")
        second = new_run("text_to_video", tmp_path / "b", autoencoder, "run.steps=1", cache).task
    everything = list(range(24))
    assert torch.equal(first.train_latents.take(everything)[0], second.train_latents.take(everything)[0])
    assert first.train_latents.captions == second.train_latents.captions
    assert first.facts["scale"] == second.facts["scale"] and first.facts["shift"] == second.facts["shift"]

    other = new_run("text_to_video", tmp_path / "c", autoencoder, "run.steps=1", cache, "data.seed=1").task
    assert not torch.equal(first.train_latents.take(everything)[0], other.train_latents.take(everything)[0])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4


def test_latents_are_scaled_to_unit_variance(tmp_path, autoencoder):
    task = new_run("text_to_video", tmp_path, autoencoder, "run.steps=1", "autoencoder.clips=40").task
    mean, logvar = task.train_latents.take(list(range(40)))
    torch.manual_seed(0)
    draws = torch.stack([task._sample(mean, logvar, torch.randn(mean.shape)) for _ in range(20)])
    # 40 clips x 20 draws of 128 values: the standard error of both is below 0.01.
    assert abs(float(draws.mean())) < 0.02
    assert abs(float(draws.std()) - 1) < 0.02


def test_run_needs_nothing_but_its_folder(tmp_path):
    stage = tmp_path / "stage"
    new_run("autoencoder", stage, stage, "run.steps=1").run()
    new_run("text_to_video", tmp_path / "run", stage, "run.steps=2").run(max_steps=1)
    stage.rename(tmp_path / "elsewhere")
    again = resume(tmp_path / "run", CPU)
    again.run()
    assert again.step == 2


def test_run_folder_says_what_was_done(tmp_path, autoencoder):
    more = ("run.steps=6", "run.checkpoint_every=2", "run.keep_checkpoints=2")
    new_run("autoencoder", tmp_path, autoencoder, *more).run()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-0000004.pt", "step-0000006.pt"]
    description = json.loads((tmp_path / "run.json").read_text())
    assert set(description) == {"revision", "torch", "python", "device", "threads", "parameters"}
    assert read_recipe(read_table(tmp_path / "recipe.toml"), "x") == recipe_of("autoencoder", autoencoder, *more)
    assert (tmp_path / "loss.png").stat().st_size > 1000
    with pytest.raises(RecipeError, match="already holds a run"):
        new_run("autoencoder", tmp_path, autoencoder)


def test_a_loss_that_is_not_finite_ends_training(tmp_path):
    trainer = new_run("autoencoder", tmp_path, tmp_path, "run.steps=4")
    with torch.no_grad():
        trainer.task.networks["vae"].decoder.conv_out.conv.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss, l1.*not finite in step 1; the batch is in .*process-0\.pt"):
        trainer.run()
    assert not (tmp_path / "checkpoints").exists()
    kept = torch.load(tmp_path / "not-finite-step-1-process-0.pt", weights_only=True)
    assert kept["step"] == 0 and kept["values"]["loss"].isnan()
    # The first pass had the first clips, and the random numbers that follow the seed.
    numbers, epochs = ShuffledClips(40, 23).take(0, 4)
    assert torch.equal(kept["batch"][0], trainer.task.batch(numbers, epochs)[0])
    torch.manual_seed(0)
    checkpoints.set_random_state(kept["random"], CPU)
    assert trainer.task.losses(kept["batch"], kept["step"]).metrics["loss"].isnan()


def test_broken_checkpoints_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="expected the folder of a training run"):
        resume(tmp_path, CPU)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "step-0000001.pt"
    file.write_bytes(b"cut off")
    with pytest.raises(RecipeError, match="not a checkpoint of this trainer"):
        resume(tmp_path, CPU)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(RecipeError, match="not a checkpoint of this trainer"):
        resume(tmp_path, CPU)


def test_ema_follows_with_a_rising_decay():
    assert ema_decay(0.999, 1) == pytest.approx(2 / 11)
    assert ema_decay(0.999, 90) == pytest.approx(91 / 100)
    assert ema_decay(0.999, 10**6) == 0.999
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = Ema({"layer": layer}, 0.15)
    torch.nn.init.constant_(ema.networks["layer"].weight, 1.0)
    torch.nn.init.constant_(layer.weight, 3.0)
    ema.update({"layer": layer})
    assert float(ema.networks["layer"].weight) == pytest.approx(0.15 * 1 + 0.85 * 3)
    assert ema.updates == 1


def test_learning_rate_warms_up_and_decays():
    schedule = Optimization(learning_rate=2.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(schedule, step, 24) for step in range(25)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[14] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rates[24] == pytest.approx(0.2)
    constant = Optimization(learning_rate=2.0)
    assert {learning_rate(constant, step, 10) for step in range(10)} == {2.0}


def test_every_epoch_has_all_clips_in_an_own_order():
    clips = ShuffledClips(7, seed=3)
    numbers, of = clips.take(0, 21)
    assert of.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    whole = numbers.tolist()
    epochs = [whole[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = ShuffledClips(7, seed=3)
    assert [index for position in range(0, 21, 3) for index in again.take(position, 3)[0].tolist()] == whole
    assert ShuffledClips(7, seed=4).take(0, 21)[0].tolist() != whole
    with pytest.raises(InputError, match="no clips"):
        ShuffledClips(0, seed=3)


def test_rare_clips_come_back_in_a_straight_line():
    which = torch.arange(4_000) % 2 == 0
    clips = ShuffledClips(4_000, 3, RareClips(which, share=0.2, start=8_000, end=16_000))
    assert ShuffledClips(4_000, 3, RareClips(which, 0.2, 0, 0)).take(0, 4_000)[0].tolist() == (
        ShuffledClips(4_000, 3).take(0, 4_000)[0].tolist()
    )
    # Standard deviation of a share of 2,000 clips: at most 0.011.
    shares = [float(which[clips.take(4_000 * epoch, 4_000)[0]].sum()) / 2_000 for epoch in range(5)]
    assert shares == pytest.approx([0.2, 0.2, 0.4, 0.8, 1.0], abs=0.04)
    numbers = clips.take(5_000, 3_000)[0]
    assert torch.equal(numbers, torch.cat([clips.take(p, 1_000)[0] for p in (5_000, 6_000, 7_000)]))


def test_curves_are_drawn_for_every_metric(tmp_path):
    rows = [{"step": step, "loss": 10 / step, "adversarial": -0.1 * step} for step in range(1, 9)] + [
        {"step": 8, "validation_loss": 1.0}
    ]
    draw_curves(rows, tmp_path / "curves.png")
    from PIL import Image

    with Image.open(tmp_path / "curves.png") as image:
        colours = [image.crop((420 * column, 0, 420 * (column + 1), 240)).getcolors(4096) for column in range(3)]
        assert image.size == (3 * 420, 240)
    blue = [dict((colour, count) for count, colour in panel).get((65, 105, 225), 0) for panel in colours]
    assert blue[0] > 300 and blue[1] > 300
