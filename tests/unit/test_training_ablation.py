"""The ablation of HARIVO's parts: what each variant lacks, what is made again, the tables."""

import json
from pathlib import Path

import pytest
import torch

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.networks.video_features import VideoFeatures, VideoFeaturesConfig
from weft.kernels.sampling.mitigating_gradient import mitigated
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.model_loaders.image_unet import ImageUNetConfig
from weft.training import ablation, checkpoints, distance, sample
from weft.training.ablation import PARTS, Ablation, Sampling, as_table, summaries
from weft.training.cli import main
from weft.training.config import read_table
from weft.training.data.captions import caption_terms
from weft.training.data.labels import LABELS
from weft.training.image_unet import ImageUNet, component_of
from weft.training.sample import Sampler
from weft.training.settings import InputError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
SAMPLING = Sampling(count=2, steps=2, guidance=2.0, alpha=40.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A frame-wise autoencoder, an image model with its text encoder, and the distance's network, at 32 x 32."""
    folder = tmp_path_factory.mktemp("models")
    changes = ["network.downsample=[1, 4, 4]", "network.framewise=true", "crops.steps=0", "data.size=32", "run.steps=2"]
    sets = [part for change in changes for part in ("--set", change)]
    command = ["train", str(TINY / "autoencoder.toml"), "--out", str(folder / "autoencoder"), "--device", "cpu"]
    assert main([*command, *sets]) == 0
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "model_channels": 32, "channel_mult": (1, 1, 2, 2), "num_res_blocks": 1}
    unet = ImageUNet(ImageUNetConfig(**sizes, context_width=16, heads=2))
    text = CaptionEncoder(CaptionEncoderConfig(caption_terms(places=True), 16, 1, 2, 20))
    said = {"schedule": NoiseSchedule(), "metadata": {}}
    parts = {"diffusion_model": component_of(unet), "text_encoder": text}
    save_bundle(folder / "image.safetensors", parts, system="image", latent=LatentSpec(scale=0.7), **said)
    features = VideoFeatures(VideoFeaturesConfig((4, 6), LABELS, 4, 32))
    save_bundle(folder / "features.safetensors", {"features": features}, system="features", latent=LatentSpec(), **said)
    return {name: str(folder / name) for name in ("autoencoder", "image.safetensors", "features.safetensors")}


@pytest.fixture(autouse=True)
def small(models, monkeypatch):
    network = Path(models["features.safetensors"])
    meter = distance.FrechetMeter
    monkeypatch.setattr(ablation, "FrechetMeter", lambda: meter(network))
    monkeypatch.setattr(distance, "REAL_CLIPS", 4)


def recipe(models) -> dict:
    table = read_table(TINY / "harivo.toml")
    table["autoencoder"] |= {"path": models["autoencoder"], "clips": 8}
    table["image_model"] = {"path": models["image.safetensors"]}
    table["losses"]["tokens_first"] = 1
    table["run"] |= {"steps": 3, "batch_size": 2, "validation_clips": 0, "checkpoint_every": 100}
    return table


def test_each_variant_has_one_part_more(models, tmp_path):
    """Baseline: nothing but motion modules; last: everything of the recipe. Steps on clips are the same."""
    made = Ablation(recipe(models), "tiny.toml", tmp_path, None, SAMPLING, CPU)
    recipes = [made.recipe(number, seed=1) for number in range(len(PARTS))]
    found = [
        (r.losses.attention > 0, r.losses.contrast > 0, r.losses.image > 0, r.network.mapping, r.network.frame_tokens)
        for r in recipes
    ]
    assert found == [
        (False, False, False, False, 0),
        (True, True, False, False, 0),
        (True, True, True, True, 0),
        (True, True, True, True, 2),
        (True, True, True, True, 2),
    ]
    assert [(r.run.steps, r.losses.tokens_first) for r in recipes] == [(2, 0)] * 3 + [(3, 1)] * 2
    assert recipes[3] == recipes[4] and {r.seed for r in recipes} == {24}
    assert {r.optimization.final_fraction for r in recipes} == {1.0}, "the recipe's would have fallen to 0.1 by then"
    assert {r.autoencoder.cache for r in recipes} == {str(tmp_path / "latents")}
    without = recipe(models)
    without["losses"].pop("tokens_first")
    falling = Ablation(without, "tiny.toml", tmp_path, None, SAMPLING, CPU).recipe(4, 0)
    assert (falling.run.steps, falling.optimization.final_fraction) == (3, 0.1)
    longer = Ablation(recipe(models), "tiny.toml", tmp_path, 7, SAMPLING, CPU)
    assert [longer.recipe(number, 0).run.steps for number in (0, 4)] == [7, 8]


def test_what_is_finished_is_not_made_again(models, tmp_path, monkeypatch):
    """A run that was interrupted goes on; another alpha samples the last variant alone; other steps are refused."""
    first = Ablation(recipe(models), "tiny.toml", tmp_path, None, SAMPLING, CPU)
    ablation.start(first.recipe(1, 0), tmp_path / "runs" / "losses-0", CPU).run(max_steps=1)
    assert first.run(seeds=1) is None
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["baseline-0", "losses-0", "mapping-0", "tokens-0"]
    assert [checkpoints.read(checkpoints.newest(run))["step"] for run in runs] == [2, 2, 2, 3]
    written = (tmp_path / "ablation.json").read_text()
    table = json.loads(written)
    assert [row["variant"] for row in table["rows"]] == [part.name for part in PARTS]
    assert all(row["clips"] == 2 and row["frechet"] > 0 and row["frechet_clips"] == 4 for row in table["rows"])
    tokens, mitigating = table["rows"][3:]
    assert tokens["flicker"] != mitigating["flicker"], "the same weights, sampled otherwise"
    page = (tmp_path / "ablation.md").read_text()
    assert "| motion modules | 1 | " in page and "recipe tiny.toml, steps 2, tokens_first 1" in page

    sampled = []
    monkeypatch.setattr(ablation, "start", None)
    monkeypatch.setattr(ablation, "resume", None)
    monkeypatch.setattr(ablation, "write_samples", lambda *arguments: sampled.append(arguments[2].name))
    assert first.run(seeds=1) is None
    assert (tmp_path / "ablation.json").read_text() == written and not sampled
    # Wherever latents are kept.
    table = recipe(models)
    table["autoencoder"]["cache"] = "elsewhere"
    other = Sampling(count=2, steps=2, guidance=2.0, alpha=10.0)
    assert Ablation(table, "tiny.toml", tmp_path, None, other, CPU).run(seeds=1) is None
    assert sampled == ["mitigating-0"]
    with pytest.raises(InputError, match="baseline-0: holds a run of other settings"):
        Ablation(recipe(models), "tiny.toml", tmp_path, 5, SAMPLING, CPU).run(seeds=1)


def test_a_signal_ends_it(models, tmp_path, monkeypatch):
    class Interrupted:
        def run(self) -> int:
            return 15

    monkeypatch.setattr(ablation, "start", lambda *arguments: Interrupted())
    assert Ablation(recipe(models), "tiny.toml", tmp_path, None, SAMPLING, CPU).run(seeds=1) == 15
    assert not list(tmp_path.iterdir())


def test_mean_and_spread_over_seeds():
    names = ["frechet", "flicker", "colour", "shape", "direction", "background", "frechet_real"]
    rows = [
        {"variant": variant, "seed": seed} | dict.fromkeys(names, value)
        for variant, seed, value in (("baseline", 0, 0.25), ("baseline", 1, 0.75), ("losses", 0, 0.5))
    ]
    lines = list(summaries(rows))
    assert [(line["variant"], line["seeds"]) for line in lines] == [("baseline", 2), ("losses", 1)]
    assert lines[0]["frechet"] == {"mean": 0.5, "spread": pytest.approx(0.125**0.5)}
    assert as_table(lines).splitlines() == [
        "| variant | seeds | Fréchet distance | flicker | colour % | shape % | direction % | background % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| motion modules | 2 | 0.50 ± 0.35 | 0.500 ± 0.354 | 50.0 ± 35.4 | 50.0 ± 35.4 | 50.0 ± 35.4 | 50.0 ± 35.4 |",
        "| + L_TRS and L_DC | 1 | 0.50 | 0.500 | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| as many real clips |  | 0.50 |  |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": {"max_frames": 4, "mapping": False}},
            "tiny.toml: network.mapping off, expected a recipe with all",
        ),
        ({"losses": {"contrast": 0.0, "attention": 0.0}}, "losses.attention, losses.contrast off"),
        ({"data": {"kind": "folder", "path": "x", "size": 32, "frames": 4}}, "data of kind 'folder', expected moving"),
        (
            {"data": {"kind": "moving_shapes", "size": 16, "frames": 4}},
            "clips of 4 frames of 16 x 16 pixels, expected ",
        ),
    ],
)
def test_recipes_without_what_is_compared_are_refused(models, tmp_path, changes, message):
    table = recipe(models)
    table["losses"].pop("tokens_first")
    with pytest.raises(InputError, match=message):
        Ablation(table | changes, "tiny.toml", tmp_path, None, SAMPLING, CPU)


def test_other_recipes_are_refused(tmp_path, capsys):
    command = ["ablation", str(TINY / "autoencoder.toml"), "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 2
    assert "autoencoder.toml: a recipe of autoencoder, expected harivo" in capsys.readouterr().err


def test_samples_are_mitigated(models, tmp_path, monkeypatch):
    """Every guided prediction, per element: frames come out nearer to each other; without alpha nothing changes."""
    run = tmp_path / "run"
    made = Ablation(recipe(models), "tiny.toml", tmp_path, None, SAMPLING, CPU)
    ablation.start(made.recipe(0, 0), run, CPU).run(max_steps=1)
    captions, ratios = ["a red circle moves left to right over a dark background"], []

    def noting(denoised, alpha, ratio, per_element):
        assert denoised.shape == (1, 4, 4, 8, 8) and per_element
        ratios.append(float(ratio))
        return mitigated(denoised, alpha, ratio, per_element=per_element)

    plain, off, drawn = (Sampler(run, CPU, *alpha)(captions, 4, 2.0, 0) for alpha in ((), (0.0,), (2000.0,)))
    assert torch.equal(plain, off)
    steps = [video.float().diff(dim=1).square().mean().item() for video in (plain, drawn)]
    assert steps[1] < 0.95 * steps[0]
    monkeypatch.setattr(sample, "mitigated", noting)
    assert torch.equal(Sampler(run, CPU, 2000.0)(captions, 4, 2.0, 0), drawn)
    assert ratios == sorted(ratios, reverse=True) and len(ratios) == 4
    for wrong in ("-1", "nan", "much"):
        with pytest.raises(SystemExit):
            main(["sample", str(run), "--out", str(tmp_path / "out"), "--mitigate", wrong])
