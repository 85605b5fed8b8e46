"""Training the network of the Frechet distance: labels, losses, runs, and the file that comes of one."""

import json
from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from weft.model_loaders.checkpoint import read
from weft.model_loaders.errors import CheckpointError
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import FeaturesRecipe, override, read_recipe, read_table
from weft.training.data.captions import parse_caption
from weft.training.data.clips import stack_videos, to_pixels
from weft.training.data.labels import LABELS, SOFT, accuracy, labels_of
from weft.training.features_task import FeaturesTask, soften
from weft.training.metrics import read_rows
from weft.training.revision import git_revision
from weft.training.settings import RecipeError, describe

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")


def tiny(*settings: str):
    table = read_table(TINY / "features.toml")
    override(table, list(settings))
    return read_recipe(table, "r.toml")


def network(channels=(4, 6, 8), frames=6):
    torch.manual_seed(0)
    return VideoFeatures(VideoFeaturesConfig(channels, ("a", "b", "c"), frames, 16)).eval()


def test_labels_say_which_object_has_what():
    text = "a red circle moves slowly left to right and a blue square moves top to bottom over a dark background"
    shown = [label for label, holds in zip(LABELS, labels_of(parse_caption(text)).tolist(), strict=True) if holds]
    traits = ["red circle", "blue square", "red left to right", "blue top to bottom", "red slowly", "blue medium"]
    any_of = ["circle", "square", "left to right", "top to bottom", "slowly", "medium"]
    assert shown == [*any_of, "red", "blue", *traits, "dark background"]
    assert len(LABELS) == len(set(LABELS)) == 80


def test_accuracy_counts_clips_whose_labels_are_all_right():
    labels = torch.stack([labels_of(parse_caption(f"a red circle moves {way} over a dark background")) for way in (
        "left to right", "right to left", "top to bottom", "bottom to top")])  # fmt: skip
    logits = labels * 2 - 1
    assert set(accuracy(logits, labels).values()) == {1.0}
    logits[0, LABELS.index("red left to right")] = -0.1
    logits[1, LABELS.index("cyan top to bottom")] = 0.1
    logits[1, LABELS.index("dark background")] = -0.1
    assert accuracy(logits, labels) == {
        "any": 1.0, "colour": 1.0, "shape": 1.0, "direction": 0.5, "speed": 1.0, "background": 0.75, "softness": 1.0
    }  # fmt: skip


def test_features_do_not_depend_on_the_other_clips():
    clips = torch.rand(3, 3, 6, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        together, alone = network().features(clips), torch.cat([network().features(clip[None]) for clip in clips])
    assert together.shape == (3, 8) and float(together.std()) > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)


def test_twice_as_many_frames_are_two_interlaced_clips():
    """So that a clip of every frame twice has the features of the clip itself, and every frame counts."""
    clip = torch.rand(1, 3, 6, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        features = network().features
        torch.testing.assert_close(features(clip.repeat_interleave(2, dim=2)), features(clip), rtol=1e-5, atol=1e-7)
        changed = torch.cat([clip, clip.flip(2)], dim=2)
        halves = torch.stack([features(changed[:, :, first::2]) for first in (0, 1)])
        torch.testing.assert_close(features(changed), halves.mean(dim=0), rtol=1e-5, atol=1e-7)
        assert features(clip[:, :, :5]).shape == (1, 8)
        with pytest.raises(ValueError, match="A clip of 4 frames is too short: give at least 5"):
            features(clip[:, :, :4])


def test_a_run_learns_resumes_and_says_how_well_it_reads(tmp_path):
    more = ("run.steps=60", "run.log_every=10", "run.batch_size=8")
    start(tiny(*more), tmp_path / "straight", CPU).run()
    rows = read_rows(tmp_path / "straight" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    measured = {name.removeprefix("validation_"): value for name, value in rows[-1].items() if name != "step"}
    assert set(measured) == {"any", "colour", "shape", "direction", "speed", "background", "softness"}

    start(tiny(*more), tmp_path / "resumed", CPU).run(max_steps=25)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    for name, tensor in states[0]["networks"]["features"].items():
        assert torch.equal(tensor, states[1]["networks"]["features"][name]), name


def test_an_exported_file_has_the_features_of_the_run(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "features.safetensors"
    trainer = start(tiny("run.steps=3"), run, CPU)
    trainer.run()
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert "features 0.00 M" in capsys.readouterr().out
    checkpoint = read(out)
    assert set(checkpoint.components) == {"features"} and checkpoint.family == "features"
    again = checkpoint.component("features").build()
    assert again.config == trainer.task.network.config and again.config.labels == LABELS
    videos = to_pixels(stack_videos(trainer.task.held_out, [0, 1])[0])
    with torch.no_grad():
        expected = trainer.ema.networks["features"].features(videos)
        # Weights are stored in float16.
        torch.testing.assert_close(again.features(videos), expected, rtol=5e-3, atol=1e-4)
    rows = read_rows(run / "metrics.jsonl")
    held_out = json.loads(checkpoint.metadata["held_out"])["features"]
    assert held_out == {name: rows[-1][f"validation_{name}"] for name in held_out} and len(held_out) == 7
    assert json.loads(checkpoint.metadata["steps"]) == {"features": 3}
    with pytest.raises(CheckpointError, match="has no diffusion model, it has: features"):
        checkpoint.component("diffusion_model")


def test_clips_are_softened_in_turn():
    task = FeaturesTask(tiny(), CPU)
    clips = torch.arange(8)
    (first, labels), (second, others) = (task.batch(clips, torch.full_like(clips, epoch)) for epoch in (0, 1))
    assert labels[:, SOFT].tolist() == [1, 0, 0, 0, 1, 0, 0, 0] and others[:, SOFT].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert torch.equal(labels[:, :SOFT], others[:, :SOFT])
    assert torch.equal(first[0], soften(second[:1])[0]) and torch.equal(first[1], second[1])
    # The middle of a softened frame, by hand.
    mean = second[0, 2, 4:7, 9:12].double().mean(dim=(0, 1)).round()
    assert torch.equal(first[0, 2, 5, 10].double(), mean)


def test_a_run_of_features_makes_no_videos(tmp_path, capsys):
    start(tiny(), tmp_path, CPU).run()
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "a run of features, expected text_to_video, versvideo, image, harivo or show1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("channels=[8]", r"channels: found \[8\], expected at least two widths"),
        ("channels=[8, 0]", "channels: found 0, expected at least 1"),
        ("data.frames=4", "data.frames: found 4, expected at least 5: each of 2 blocks"),
        ("data.unnamed_speeds=0.5", "data.unnamed_speeds: found 0.5, expected 0"),
        ("data.kind=folder", "data.kind: found 'folder', expected one of 'moving_shapes'"),
    ],
)
def test_settings_that_cannot_work_are_named(setting, message):
    with pytest.raises(RecipeError, match=message):
        tiny(setting)


def test_every_setting_is_documented():
    assert len(describe(FeaturesRecipe)) > 25
    assert not [line for line in describe(FeaturesRecipe) if "see the network" in line]


def test_the_revision_of_a_second_working_tree(tmp_path):
    """Where .git is a file that names a folder, and branches lie in the repository's own."""
    own = tmp_path / "main" / ".git" / "worktrees" / "other"
    (tmp_path / "main" / ".git" / "refs" / "heads").mkdir(parents=True)
    own.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "main" / ".git" / "refs" / "heads" / "side").write_text("0123456789\n")
    assert git_revision(tmp_path / "other") == "0123456789"
