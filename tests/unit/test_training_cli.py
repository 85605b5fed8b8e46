"""The command line: scores and exit codes, data sets, sampling, and files that the loaders read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weft.model_loaders.checkpoint import read
from weft.training import checkpoints
from weft.training.cli import main
from weft.training.data.captions import parse_caption, split_of
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig, animate, render
from weft.training.data.video_files import read_video, write_video
from weft.training.sample import Sampler

TINY = Path(__file__).parents[1] / "data" / "training"


def train(recipe: str, folder: Path, *settings: str) -> int:
    changes = [part for setting in settings for part in ("--set", setting)]
    return main(["train", str(TINY / f"{recipe}.toml"), "--out", str(folder), "--device", "cpu", *changes])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `ae` and `t2v`."""
    folder = tmp_path_factory.mktemp("runs")
    assert train("autoencoder", folder / "ae") == 0
    assert train("text_to_video", folder / "t2v", f"autoencoder.path={folder / 'ae'}") == 0
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, str]:
    frames, caption = MovingShapes(MovingShapesConfig(two_objects=0.0, seed=5))[3]
    write_video(tmp_path / "clip.mp4", frames, 8)
    return tmp_path / "clip.mp4", caption


def test_score_of_the_right_caption_is_0(clip, capsys):
    path, caption = clip
    assert main(["score", str(path), "--caption", caption]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["colour", "shape", "direction", "background", "speed"]
    assert all(line.split()[1] == "ok" for line in lines)


@pytest.mark.parametrize("part", ["colour", "shape", "direction", "background"])
def test_score_of_a_wrong_caption_is_1(clip, capsys, part):
    path, caption = clip
    choices = {
        "colour": ("red", "green", "blue", "yellow", "cyan", "magenta"),
        "shape": ("circle", "square", "triangle"),
        "direction": ("left to right", "right to left", "top to bottom", "bottom to top"),
        "background": ("dark", "grey", "light"),
    }[part]
    said = next(word for word in choices if word in caption)
    other = next(word for word in choices if word != said)
    assert main(["score", str(path), "--caption", caption.replace(said, other)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert [line.split()[0] for line in wrong] == [part]
    assert said in wrong[0] and wrong[0].endswith(f"expected {other}")


def test_score_refuses_what_it_cannot_read(clip, tmp_path, capsys):
    path, caption = clip
    assert main(["score", str(path), "--caption", "a purple circle"]) == 2
    assert "found 'purple', expected red or" in capsys.readouterr().err
    (tmp_path / "no.mp4").write_bytes(b"not a video")
    assert main(["score", str(tmp_path / "no.mp4"), "--caption", caption]) == 2
    assert main(["score", str(tmp_path / "absent.mp4"), "--caption", caption]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 2 and "Traceback" not in errors


def test_data_set_is_scored_as_its_captions_say(tmp_path, capsys):
    folder = tmp_path / "set"
    assert main(["make-dataset", str(folder), "--count", "4", "--seed", "7"]) == 0
    assert main(["evaluate", str(folder)]) == 0
    table = json.loads((folder / "scores.json").read_text())
    assert (table["clips"], table["colour"], table["direction"], table["background"]) == (4, 1.0, 1.0, 1.0)
    for index, video in enumerate(table["videos"]):
        # Centres are read to a hundredth of the frame; objects of this set do not fade, bins are a sixteenth.
        tracks = MovingShapes(MovingShapesConfig(seed=7)).clip(index).objects
        travel = np.mean([np.linalg.norm(track.centres[-1] - track.centres[0]) / 64 for track in tracks])
        assert video["travel"] == pytest.approx(travel, abs=0.01) and video["change"] < 0.1
        # Levels of 0 to 255: the set has none, compression leaves less than one.
        assert 0 < video["flicker"] < 1

    for index in range(4):
        frames, _ = read_video(folder / f"{index:05d}.mp4")
        Image.fromarray(frames[5] ^ 1).save(folder / f"{index:05d}.png")
    assert main(["evaluate", str(folder)]) == 0
    # Each value is off by one.
    assert json.loads((folder / "scores.json").read_text())["picture_psnr"] == pytest.approx(48.13, abs=0.01)

    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    lines[0]["caption"], lines[1]["caption"] = lines[1]["caption"], lines[0]["caption"]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "swapped.json")]) == 0
    swapped = json.loads((tmp_path / "swapped.json").read_text())
    assert swapped["colour"] == 0.5
    assert [video["colour"] for video in swapped["videos"]] == [False, False, True, True]

    for name in ("00001.mp4", "00003.mp4"):
        (folder / name).unlink()
    assert main(["evaluate", str(folder)]) == 2
    assert "2 of 4 captioned videos missing: 00001.mp4, 00003.mp4" in capsys.readouterr().err
    (folder / "captions.jsonl").unlink()
    assert main(["evaluate", str(folder)]) == 2
    assert "no video with a caption" in capsys.readouterr().err


def test_motion_factors_of_videos(tmp_path, capsys):
    """As HiGen measures them, between latents of single frames: more where an object is quicker."""
    models = Path(__file__).resolve().parents[2] / "demo_models"
    captions = [f"a red circle moves {speed} left to right over a light background" for speed in ("slowly", "quickly")]
    for index, text in enumerate(captions):
        clip = animate(parse_caption(text), np.random.default_rng(3), MovingShapesConfig(frames=8))
        write_video(tmp_path / f"{index}.mp4", render(clip), 8)
    lines = [json.dumps({"file": f"{index}.mp4", "caption": text}) for index, text in enumerate(captions)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    assert main(["evaluate", str(tmp_path), "--motion", str(models / "higen.safetensors")]) == 0
    slow, quick = json.loads((tmp_path / "scores.json").read_text())["videos"]
    # The embedded model's cues go from 20 to 260, by distance.
    assert 20 < slow["motion"] < 0.7 * quick["motion"] < quick["motion"] < 300
    assert main(["evaluate", str(tmp_path), "--motion", str(models / "lvdm.safetensors")]) == 2
    assert "its autoencoder has no latent for each frame" in capsys.readouterr().err


def test_held_out_data_set_differs(tmp_path):
    for name, more in (("train", []), ("held", ["--held-out"])):
        assert main(["make-dataset", str(tmp_path / name), "--count", "1", *more]) == 0
    captions = [(tmp_path / name / "captions.jsonl").read_text() for name in ("train", "held")]
    assert captions[0] != captions[1]


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_exported_file_has_the_trained_weights(runs, tmp_path, weights):
    out = tmp_path / "bundle.safetensors"
    description = json.loads((runs / "t2v" / "run.json").read_text()) | {"revision": "an earlier revision"}
    (runs / "t2v" / "run.json").write_text(json.dumps(description))
    (tmp_path / "scores.json").write_text(json.dumps({"clips": 2, "colour": 0.5, "videos": [{}]}))
    command = ["export", str(runs / "t2v"), "--out", str(out), "--weights", weights]
    assert main([*command, "--scores", str(tmp_path / "scores.json")]) == 0

    checkpoint = read(out)
    state = checkpoints.read(checkpoints.newest(runs / "t2v"))
    first_stage = checkpoints.read(checkpoints.newest(runs / "ae"))
    trained = dict(state["ema"]["networks"] if weights == "ema" else state["networks"])
    trained["vae"] = first_stage["ema"]["networks"]["vae"]
    assert set(checkpoint.components) == {"diffusion_model", "vae", "text_encoder"}
    for role, component in checkpoint.components.items():
        network = component.build(dtype=torch.float16)
        assert network.state_dict().keys() == trained[role].keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, trained[role][name].half()), name

    latent = checkpoint.latent
    assert (latent.spatial, latent.temporal, latent.channels) == (4, 2, 4)
    assert (latent.scale, latent.shift) == (state["facts"]["scale"], state["facts"]["shift"])
    assert np.shape(latent.rgb_factors) == (latent.channels, 3) and np.shape(latent.rgb_bias) == (3,)
    assert checkpoint.schedule.linear_start == 0.0015
    metadata = {name: json.loads(value) if value[0] in "{[" else value for name, value in checkpoint.metadata.items()}
    assert metadata["steps"] == {"text_to_video": 2} and metadata["dataset_seed"] == "0"
    assert metadata["scores"] == {"clips": 2, "colour": 0.5}
    assert len(metadata["revision"]) == 40 or metadata["revision"] == "unknown"
    assert metadata["training_revisions"] == {"text_to_video": description["revision"]}


def test_autoencoder_can_be_exported_alone(runs, tmp_path):
    assert main(["export", str(runs / "ae"), "--out", str(tmp_path / "vae.safetensors")]) == 0
    assert set(read(tmp_path / "vae.safetensors").components) == {"vae"}


def test_an_exported_autoencoder_can_be_trained_on(runs, tmp_path):
    assert main(["export", str(runs / "ae"), "--out", str(tmp_path / "vae.safetensors")]) == 0
    path = f"autoencoder.path={tmp_path / 'vae.safetensors'}"
    assert train("text_to_video", tmp_path / "run", path) == 0


def test_samples_depend_on_seed_and_caption(runs, tmp_path):
    captions = ["--caption", "a red circle moves left to right over a dark background", "--caption", "a blue square"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command = ["sample", str(runs / "t2v"), "--out", str(tmp_path / name), "--steps", "4", "--seed", seed]
        assert main([*command, *captions, "--device", "cpu"]) == 0
    videos = {name: read_video(tmp_path / name / "00000.mp4")[0] for name in "abc"}
    assert videos["a"].shape == (4, 16, 16, 3)
    assert (videos["a"] == videos["b"]).all() and (videos["a"] != videos["c"]).any()
    lines = [json.loads(line) for line in (tmp_path / "a" / "captions.jsonl").read_text().splitlines()]
    assert lines[1] == {"file": "00001.mp4", "caption": "a blue square"}


def test_sampling_follows_the_exact_denoiser_of_two_points(runs):
    """With one point as the captioned data and another as all data, guidance g leads to z1 + g (z0 - z1)."""
    sampler = Sampler(runs / "t2v", torch.device("cpu"))
    torch.manual_seed(0)
    captioned, uncaptioned = torch.randn(2, 4, 2, 4, 4)
    alphas = sampler.schedule.alphas_cumprod().float()

    class Exact(torch.nn.Module):
        def forward(self, x, times, context):
            clean = torch.stack([captioned, uncaptioned])
            alpha = alphas[times].view(-1, 1, 1, 1, 1)
            return (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    sampler.unet = Exact()
    found = sampler(["a red circle"], steps=20, guidance=3.0, seed=4)

    noise = torch.randn((1, 4, 2, 4, 4), generator=torch.Generator().manual_seed(4))
    target = uncaptioned + 3.0 * (captioned - uncaptioned)
    start, end = alphas[951], alphas[0]
    eps = (noise - start.sqrt() * target) / (1 - start).sqrt()
    latents = (end.sqrt() * target + (1 - end).sqrt() * eps) / sampler.scale - sampler.shift
    with torch.no_grad():
        expected = ((sampler.autoencoder.decode(latents).clamp(-1, 1) + 1) * 127.5).movedim(1, -1)
    assert found.shape == (1, 4, 16, 16, 3)
    assert float(expected.std()) > 5
    # Rounding to 8 bit, and float32 over 20 steps.
    assert float((found - expected).abs().max()) < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.toml"], "absent.toml: no such recipe"),
        (["resume", "absent"], "expected the folder of a training run"),
        (["sample", "{runs}/ae", "--out", "x"], "a run of autoencoder, expected text_to_video"),
        (["export", "{runs}/absent", "--out", "x.safetensors"], "absent"),
        (["export", "{runs}/ae", "--out", "x.bin"], "x.bin: found the ending '.bin', expected .safetensors"),
    ],
)
def test_mistakes_end_with_one_line(arguments, message, runs, capsys):
    assert main([part.format(runs=runs) for part in arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_the_first_stage_is_checked(runs, tmp_path, capsys):
    for path, message in (
        (runs / "absent", "does not exist; train the autoencoder or name its run folder"),
        (runs / "t2v", "is a run of text_to_video, expected an autoencoder's"),
    ):
        assert train("text_to_video", tmp_path / "run", f"autoencoder.path={path}") == 2
        assert message in capsys.readouterr().err
    stage = f"autoencoder.path={runs / 'ae'}"
    assert train("text_to_video", tmp_path / "run", stage, "text_encoder.max_tokens=5") == 2
    assert "text_encoder.max_tokens: found 5, expected at least" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["captions"], ["sample", "absent", "--out", "x"]])
def test_more_captions_than_are_held_out_are_refused(command, capsys):
    assert main([*command, "--count", "1000"]) == 2
    assert "error: 1000 captions need 800 with one object, but " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["captions", "--seed", "-1"], "found '-1', expected a whole number from 0 to"),
        (["make-dataset", "x", "--count", "1", "--seed", "-1"], "found '-1', expected a whole number from 0 to"),
        (["sample", "x", "--out", "y", "--seed", "4294967296"], "expected a whole number from 0 to 4294967295"),
        (["sample", "x", "--out", "y", "--steps", "3"], "grid of 3 steps starts at timestep 1000"),
        (["sample", "x", "--out", "y", "--steps", "2000"], "DDIM takes 1 to 1000 steps, found 2000"),
        (["sample", "x", "--out", "y", "--steps", "0"], "found '0', expected a whole number of at least 1"),
    ],
)
def test_impossible_numbers_are_refused(command, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(command)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--device", "tpu"], ["--max-steps", "0"]])
def test_options_are_checked(option, capsys):
    with pytest.raises(SystemExit) as error:
        main(["train", "recipe.toml", *option])
    assert error.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_settings_are_listed(capsys):
    assert main(["settings", "text_to_video"]) == 0
    text = capsys.readouterr().out
    assert "caption_dropout = 0.1" in text and "share of captions replaced by the empty one" in text


def test_captions_are_distinct_and_held_out(capsys):
    assert main(["captions", "--count", "50", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 50
    assert {split_of(parse_caption(line)) for line in lines} == {"held_out"}
