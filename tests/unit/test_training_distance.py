"""`evaluate --frechet`: the distance of a folder's videos to real clips, and what it refuses."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.analysis.frechet import frechet_distance
from weft.kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.training import distance
from weft.training.cli import main
from weft.training.data.labels import LABELS
from weft.training.data.moving_shapes import MovingShapesConfig, write_dataset
from weft.training.data.video_files import read_video, write_video

DEMO = Path(__file__).resolve().parents[2] / "demo_models" / "lvdm.safetensors"
VIDEOS = 12


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of drawn weights, for clips of 6 frames of 16 x 16."""
    torch.manual_seed(0)
    drawn = VideoFeatures(VideoFeaturesConfig((4, 6, 8), LABELS, 6, 16))
    for weight in drawn.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("network") / "drawn.safetensors"
    parts = {"system": "features", "latent": LatentSpec(), "schedule": NoiseSchedule(), "metadata": {}}
    save_bundle(path, {"features": drawn}, **parts)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", VIDEOS, MovingShapesConfig(size=16, frames=6, count=VIDEOS, seed=3))
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def few_clips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distance, "REAL_CLIPS", 30)


def evaluate(folder: Path, *options: str | Path) -> dict:
    assert main(["evaluate", str(folder), *map(str, options)]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_the_table_has_the_distance_and_what_it_was_measured_with(folder, network, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        table = evaluate(folder, "--frechet", network)
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    # Three clips of each caption: the fewest that make at least 30.
    assert table["frechet_clips"] == 3 * VIDEOS and printed["frechet_clips"] == "36"
    assert printed["frechet"] == str(table["frechet"]) and printed["clips"] == str(VIDEOS)
    assert table["frechet"] > 0 and table["frechet_real"] > 0
    assert table["frechet_network"].startswith("drawn.safetensors ") and len(table["frechet_network"].split()[1]) == 12
    assert "Frechet distance of 12 videos: below 256 it is too large" in caplog.text
    assert evaluate(folder, "--frechet", network) == table
    assert "frechet" not in evaluate(folder)


def test_a_folder_has_no_distance_to_itself_and_some_to_another(folder, network, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "captions.jsonl").unlink()
    table = evaluate(folder, "--frechet", network, "--reference", tmp_path / "copy")
    assert table["frechet"] < 1e-9 and table["frechet_clips"] == VIDEOS and "frechet_real" not in table
    for path in (tmp_path / "copy").glob("*.mp4"):
        write_video(path, 255 - read_video(path)[0], 8)
    assert evaluate(folder, "--frechet", network, "--reference", tmp_path / "copy")["frechet"] > 5e-4


def test_many_videos_come_without_a_warning(folder, network, monkeypatch, caplog):
    monkeypatch.setattr(distance, "FEW", VIDEOS)
    with caplog.at_level(logging.WARNING):
        evaluate(folder, "--frechet", network)
    assert "Frechet" not in caplog.text


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *options: str | Path) -> str:
    assert main(["evaluate", str(folder), *map(str, options)]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors


def change(folder: Path, size: int, frames: int, file: str = "00004.mp4") -> None:
    """Put a video of another size in the place of one of them."""
    write_dataset(folder / "other", 1, MovingShapesConfig(size=size, frames=frames, count=1))
    (folder / "other" / "00000.mp4").replace(folder / file)
    shutil.rmtree(folder / "other")


def test_videos_that_cannot_be_compared_are_named(folder, network, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    change(folder, 32, 6)
    errors = refused(folder, capsys, "--frechet", network)
    assert "00004.mp4: 32 x 32 pixels, drawn.safetensors" in errors and "takes 16 x 16" in errors
    change(folder, 16, 8)
    expected = "00004.mp4: 8 frames, " + str(folder / "00000.mp4") + " has 6; expected as many in all videos"
    assert expected in refused(folder, capsys, "--frechet", network)
    change(folder, 16, 5, "00000.mp4")
    errors = refused(folder, capsys, "--frechet", network)
    assert "00000.mp4: 5 frames, drawn.safetensors" in errors and "takes at least 6" in errors
    for index in range(VIDEOS):
        change(folder, 16, 8, f"{index:05d}.mp4")
    errors = refused(folder, capsys, "--frechet", network, "--reference", tmp_path / "copy")
    assert f"00000.mp4: 6 frames, the videos of {folder} have 8" in errors


def test_too_few_videos_and_captions_are_named(folder, network, tmp_path, capsys):
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "captions.jsonl").write_text(lines[0])
    assert "found one video, a Frechet distance takes at least 2" in refused(folder, capsys, "--frechet", network)
    (folder / "captions.jsonl").write_text(json.dumps({"file": "00000.mp4", "caption": "a dog"}) + "\n" + lines[1])
    assert "caption 'a dog': found 'dog', expected red or" in refused(folder, capsys, "--frechet", network)
    (folder / "captions.jsonl").unlink()
    assert "no video with a caption" in refused(folder, capsys, "--frechet", network)


def test_options_that_cannot_work_are_named(folder, network, tmp_path, capsys):
    assert "lvdm.safetensors has no features, it has: " in refused(folder, capsys, "--frechet", DEMO)
    assert "absent.safetensors: there is no such file" in refused(folder, capsys, "--frechet", "absent.safetensors")
    (tmp_path / "empty").mkdir()
    errors = refused(folder, capsys, "--frechet", network, "--reference", tmp_path / "empty")
    assert "empty: no videos to compare with" in errors
    assert "--reference: found it without --frechet" in refused(folder, capsys, "--reference", tmp_path / "empty")


def test_the_shipped_network_sees_what_is_wrong_with_clips():
    """Far above the distance of as many other clips of the same captions, which is not zero for so few of them."""
    meter, count = distance.FrechetMeter(), 40
    things = itertools.product(("red", "green", "blue", "yellow", "cyan"), ("circle", "square"), ("dark", "grey"))
    right = 2 * [
        f"a {colour} {shape} moves left to right over a {ground} background" for colour, shape, ground in things
    ]
    left = [text.replace("left to right", "right to left") for text in right]
    red = ["a red" + text[text.index(" ", 2) :] for text in right]
    clips = list(distance.real_clips(right, range(3), 8, 64))
    own, reference, random = clips[:count], meter._features(clips[count:]), np.random.default_rng(0)

    def apart(videos) -> float:
        return frechet_distance(meter._features(videos), reference)

    def noisy(spread: float) -> list[np.ndarray]:
        return [(clip + random.normal(0, spread, clip.shape)).clip(0, 255).astype(np.uint8) for clip in own]

    real = apart(own)
    wrong = {
        "noise": apart(noisy(24)),
        "more noise": apart(noisy(64)),
        "frames in any order": apart([clip[random.permutation(8)] for clip in own]),
        "nothing moves": apart([clip[:1].repeat(8, axis=0) for clip in own]),
        "backwards": apart([clip[::-1].copy() for clip in own]),
        "the other way": apart(distance.real_clips(left, range(1), 8, 64)),
        "all red": apart(distance.real_clips(red, range(1), 8, 64)),
    }
    # Measured: 23 times and more.
    assert all(value > 10 * real for value in wrong.values()), (real, wrong)
    assert wrong["more noise"] > 1.2 * wrong["noise"]
    assert wrong["the other way"] == pytest.approx(wrong["backwards"], rel=0.2)
