"""What a run tells and keeps beside its checkpoints, and the commands around it: plan, cache, info, chain, errors."""

import json
import logging
import resource
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.training import checkpoints, tracking
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table
from weft.training.metrics import read_rows
from weft.training.recipe_files import RecipeFile, key_lines
from weft.training.settings import RecipeError
from weft.training.text import EncodedTexts

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "training"
RECIPES = ROOT / "training" / "recipes"
CPU = torch.device("cpu")


def new_run(task: str, folder: Path, *settings: str):
    table = read_table(TINY / f"{task}.toml")
    override(table, list(settings))
    return start(read_recipe(table, "tiny"), folder, CPU)


def train(task: str, out: Path, *settings: str) -> int:
    changes = [part for setting in settings for part in ("--set", setting)]
    return main(["train", str(TINY / f"{task}.toml"), "--out", str(out), "--device", "cpu", *changes])


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    new_run("autoencoder", folder).run()
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """An autoencoder of single frames."""
    path = tmp_path_factory.mktemp("frames") / "frames.safetensors"
    parts = {"vae": VideoAutoencoder(VideoAutoencoderConfig(8, (1, 4, 4), norm_groups=4, framewise=True))}
    save_bundle(path, parts, system="x", latent=LatentSpec(4, 4), schedule=NoiseSchedule(), metadata={})
    return path


@pytest.mark.parametrize("task", ["text_to_video", "versvideo"])
def test_activation_checkpointing_changes_no_gradient(task, tmp_path, autoencoder, frames):
    """Experts of VersVideo deal tokens at random, the same ones when a stage is computed again."""
    gradients = []
    for name, anew in (("kept", "false"), ("anew", "true")):
        first_stage = autoencoder if task == "text_to_video" else frames
        settings = (f"autoencoder.path={first_stage}", f"run.activation_checkpointing={anew}")
        trainer = new_run(task, tmp_path / name, *settings)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in trainer.parameters["denoiser"]:
                weight.normal_(std=0.1)
        batch = trainer.task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))
        objective = trainer.task.losses(batch, 0).objectives["denoiser"]
        objective.backward(inputs=trainer.parameters["denoiser"])
        gradients.append([weight.grad for weight in trainer.parameters["denoiser"]])
    kept, anew = gradients
    assert sum(gradient.abs().sum() for gradient in kept) > 0
    assert all(torch.equal(*pair) for pair in zip(kept, anew, strict=True))


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path, capsys):
    """A limit on the size of files stands for the disk's: the system refuses the second half of a checkpoint."""
    assert train("autoencoder", tmp_path, "run.steps=4", "run.checkpoint_every=2") == 0
    last = tmp_path / "checkpoints" / "step-0000004.pt"
    half = last.stat().st_size // 2
    last.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, limits[1]))
    try:
        assert main(["resume", str(tmp_path), "--device", "cpu"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert f"error: {last}: could not be written ([Errno 27] File too large)" in error
    assert "the checkpoints before it are as they were. Make room where they lie, and resume" in error
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002.pt"]
    assert resume(tmp_path, CPU).step == 2
    assert main(["resume", str(tmp_path), "--device", "cpu"]) == 0


def test_files_of_a_killed_writer_are_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-0000001.tmp").write_bytes(b"half")
    (folder / "step-0000002.tmp").mkdir()
    checkpoints.save(folder, 3, {"recipe": {}}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-0000003.pt"]


def test_a_dry_run_counts_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(RECIPES / "lvdm_text_to_video.toml"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # FACTS of the released model: 959 million parameters. Twenty bytes of each: 17.86 GiB.
    assert "  diffusion_model: 958.92 M parameters" in lines
    assert "memory: 17.86 GiB of weights, gradients, optimizer and averages" in lines
    assert any(line.startswith("steps per epoch: not known") for line in lines)
    assert main(["train", str(RECIPES / "demo_lvdm.toml"), "--dry-run", "--set", "run.batch_size=20"]) == 0
    out = capsys.readouterr().out
    assert "steps per epoch: 500.0 (10000 clips, 20 in a step); the run sees them 24.0 times" in out
    assert "processes that can share a batch: 1, 2, 4, 5, 10, 20; here 1" in out
    # As in the card of the embedded model.
    assert "diffusion_model: 1.95 M" in out and "text_encoder: 0.30 M" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        *(("higen", True), ("demo_show1_interpolation", True), ("demo_show1_super_resolution", True)),
        *(("demo_show1_expert", False), ("demo_versvideo", False), ("demo_image", False), ("demo_features", False)),
        *(("demo_lvdm_prediction", False), ("demo_lvdm_autoencoder", False)),
    ],
)
def test_every_task_has_a_plan(name, forward, capsys, monkeypatch, tmp_path):
    """The forward pass is counted where the size of the latents is known without opening a file."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(RECIPES / f"{name}.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "M parameters" in said and "steps per epoch: " in said
    assert ("for the forward pass of" in said) == forward


def test_a_plan_around_a_model_says_what_it_cannot_know(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(RECIPES / "demo_harivo.toml"), "--dry-run"]) == 0
    assert "known once the model that it is trained around is opened" in capsys.readouterr().out


def test_what_is_cached_is_not_computed_again(tmp_path, autoencoder, monkeypatch, capsys):
    bundle = tmp_path / "text.safetensors"
    assert train("text_to_video", tmp_path / "text", f"autoencoder.path={autoencoder}") == 0
    assert main(["export", str(tmp_path / "text"), "--out", str(bundle)]) == 0
    table = read_table(TINY / "text_to_video.toml")
    table["text_encoder"] = {"kind": "given", "path": str(bundle)}
    table["autoencoder"] |= {"path": str(autoencoder), "cache": str(tmp_path / "cache")}
    from weft.training.settings import to_toml

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(table))
    capsys.readouterr()
    assert main(["cache", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("24 clips and ") and f"are encoded in {tmp_path / 'cache'}" in said
    assert not checkpoints.exist(tmp_path / "run")

    with monkeypatch.context() as patched:
        patched.delattr(VideoAutoencoder, "moments")
        task = start(read_recipe(table, "tiny"), tmp_path / "run", CPU).task
    tokens = task.tokens[:3]
    expected = EncodedTexts(task.text_encoder)(tokens)
    monkeypatch.setattr(task.text_encoder, "forward", lambda tokens: pytest.fail("encoded again"))
    assert torch.equal(task._encoded(tokens), expected)

    assert main(["cache", str(TINY / "autoencoder.toml"), "--out", str(tmp_path / "no")]) == 2
    assert "'autoencoder' trains on the clips themselves, nothing is cached" in capsys.readouterr().err


def test_info_says_what_a_source_is(tmp_path, autoencoder, capsys):
    run, out = tmp_path / "run", tmp_path / "tiny.safetensors"
    assert train("text_to_video", run, f"autoencoder.path={autoencoder}") == 0
    (tmp_path / "scores.json").write_text(json.dumps({"clips": 2, "colour": 0.5}))
    assert main(["export", str(run), "--out", str(out), "--scores", str(tmp_path / "scores.json")]) == 0
    capsys.readouterr()
    texts = []
    for source in (run, run / "checkpoints" / "step-0000002.pt", out):
        assert main(["info", str(source)]) == 0
        texts.append(capsys.readouterr().out)
    parameters = json.loads((run / "run.json").read_text())["parameters"]["diffusion_model"]
    for text in texts[:2]:
        assert "task                text_to_video (lvdm)" in text and "step                2 of 2, 8 clips" in text
        assert "kind moving_shapes, size 16" in text or "size 16" in text
        assert f"diffusion_model     {parameters / 1e6:.2f} M values" in text
        assert f"loss                {read_rows(run / 'metrics.jsonl')[0]['loss']:.5g} at step 2" in text
    assert "family              lvdm" in texts[2] and "scores              clips 2, colour 0.5" in texts[2]
    assert "steps               text_to_video 2" in texts[2]
    assert main(["info", str(tmp_path / "absent")]) == 2
    assert main(["info", str(tmp_path / "scores.json")]) == 2
    assert "not a checkpoint of this trainer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("\nsteps = 2", "\nstpes = 2", "stpes = 2", "run.stpes: unknown key, did you mean 'steps'?"),
        (
            "batch_size = 4",
            'batch_size = "4"',
            'batch_size = "4"',
            "run.batch_size: found '4', expected a whole number",
        ),
        ("\nsteps = 2", "", "[run]", "run.steps: missing"),
        ("num_heads = 2", "num_heads = 3", "[network]", "network: width: found 16, expected a multiple of 3"),
        ("[schedule]", "[shedule]", "[shedule]", "shedule: unknown key, did you mean 'schedule'?"),
        ("context_width = 16", "context_width = 8", "context_width = 8", "network.context_width: found 8, the text"),
    ],
)
def test_errors_name_the_line(tmp_path, old, new, line, message):
    text = (TINY / "text_to_video.toml").read_text().replace('kind = "video"', 'kind = "video"\npath = "x"')
    assert text.count(old) == 1
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as error:
        RecipeFile(path, [])
    number = 1 + path.read_text().splitlines().index(line)
    assert str(error.value).startswith(f"{path}, line {number}: {message}")


def test_errors_of_set_and_of_what_is_named_say_where(tmp_path, capsys):
    recipe = TINY / "text_to_video.toml"
    assert train("text_to_video", tmp_path / "run", "autoencoder.path=absent", "run.steps=0") == 2
    assert f"error: {recipe}, --set run.steps: run.steps: found 0" in capsys.readouterr().err
    own = tmp_path / "own.toml"
    own.write_text(recipe.read_text().replace('kind = "video"', 'kind = "video"\npath = "absent"'))
    line = 1 + own.read_text().splitlines().index('path = "absent"')
    assert main(["train", str(own), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert f"error: {own}, line {line}: autoencoder.path: absent does not exist" in capsys.readouterr().err


def test_lines_of_keys():
    text = "task = 1\n\n[a]\nb = [\n  1,\n]\nc.d = 2\n[a.e]  # more\n  f = 3\n"
    assert key_lines(text) == {"task": 1, "a": 3, "a.b": 4, "a.c.d": 7, "a.e": 8, "a.e.f": 9}


def test_trackers_are_told_of_every_row(tmp_path, monkeypatch, caplog):
    told, closed = [], []

    class Tracker:
        def __init__(self, folder, step):
            told.append((folder, step))

        def scalars(self, step, values):
            told.append((step, values))

        def close(self):
            closed.append(True)

    monkeypatch.setitem(sys.modules, "hook_of_test", types.SimpleNamespace(make=Tracker))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracking._say_that_it_is_missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        new_run("autoencoder", tmp_path / "run", "run.tracker=hook_of_test:make").run()
        resume(tmp_path / "run", CPU).run()
    assert sum("no TensorBoard files are written" in record.message for record in caplog.records) == 1
    assert told[0] == (tmp_path / "run", 0) and closed == [True, True]
    rows = [{"step": step, **values} for step, values in told[1:-1]]
    assert rows == read_rows(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(RecipeError, match="run.tracker: found 'nothing:here'.*expected \"module:function\""):
        new_run("autoencoder", tmp_path / "other", "run.tracker=nothing:here").run()


def test_tensorboard_gets_the_losses(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    new_run("autoencoder", tmp_path, "run.log_every=1").run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in rows] and len(found) == 2


def test_samples_are_made_at_checkpoints(tmp_path, autoencoder):
    settings = (f"autoencoder.path={autoencoder}", "run.log_every=1")
    more = ("run.samples=2", "run.checkpoint_every=1")
    new_run("text_to_video", tmp_path / "run", *settings, *more).run()
    folders = sorted((tmp_path / "run" / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-0000001", "step-0000002"]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["00000.mp4", "00001.mp4", "captions.jsonl"]
    new_run("text_to_video", tmp_path / "plain", *settings).run()
    runs = [[row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row]
            for name in ("run", "plain")]  # fmt: skip
    assert runs[0] == runs[1]
    with pytest.raises(RecipeError, match="run.samples: found 2 with the task 'autoencoder', expected 0"):
        new_run("autoencoder", tmp_path / "no", "run.samples=2")
    with pytest.raises(RecipeError, match="run.sharded: found true with the task 'autoencoder', expected false"):
        new_run("autoencoder", tmp_path / "no", "run.sharded=true")


def test_a_chain_goes_on_and_ends_with_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    shutil.copy(TINY / "autoencoder.toml", tmp_path / "recipes")
    text = (TINY / "text_to_video.toml").read_text()
    own = text.replace('kind = "video"', 'kind = "video"\npath = "runs/autoencoder"')
    (tmp_path / "recipes" / "text_to_video.toml").write_text(own)
    chain = tmp_path / "recipes" / "all.toml"
    chain.write_text('task = "chain"\nrecipes = ["autoencoder.toml", "text_to_video.toml"]\ncaptions = 2\nsteps = 4\n')
    resume_of = ["train", str(chain), "--out", "made", "--device", "cpu"]
    # As if it had been interrupted in the second recipe.
    assert train("autoencoder", tmp_path / "runs" / "autoencoder") == 0
    stopped = ["train", "recipes/text_to_video.toml", "--out", "runs/text_to_video", "--device", "cpu"]
    assert main([*stopped, "--max-steps", "1"]) == 0
    before = (tmp_path / "runs" / "autoencoder" / "checkpoints" / "step-0000002.pt").stat().st_mtime_ns
    assert main(resume_of) == 0
    assert (tmp_path / "runs" / "autoencoder" / "checkpoints" / "step-0000002.pt").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["info", "made/text_to_video.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "steps               text_to_video 2" in said and "scores              clips 2" in said
    assert main([*resume_of, "--max-steps", "1"]) == 2
    assert "takes no --set, --dry-run or --max-steps" in capsys.readouterr().err


def test_help_shows_first_steps(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "first steps" in said
    for name in ("train", "resume", "cache", "info", "sample", "evaluate", "export", "settings"):
        assert f"    {name} " in said
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert "torchrun --nproc-per-node 8 --max-restarts 3 -m weft.training train" in said and "--dry-run" in said
