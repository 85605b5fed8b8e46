"""Training HiGen: cues of clips, pictures between videos, what a run exports."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.analysis.content import measured_appearance
from weft.kernels.networks.higen import HiGenUNet
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.model_loaders.checkpoint import read
from weft.training.build import start
from weft.training.cli import main
from weft.training.config import HiGenRecipe, override, read_recipe, read_table
from weft.training.data.clips import stack_videos
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig
from weft.training.higen_task import Colours, ImageEncoder
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """The run folder of a frame-wise autoencoder."""
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    changes = ["network.downsample=[1, 4, 4]", "network.framewise=true", "crops.steps=0"]
    sets = [part for change in changes for part in ("--set", change)]
    assert main(["train", str(TINY / "autoencoder.toml"), "--out", str(folder), "--device", "cpu", *sets]) == 0
    return folder


def recipe_of(autoencoder: Path, *changes: str) -> HiGenRecipe:
    table = read_table(TINY / "higen.toml")
    override(table, [f"autoencoder.path={autoencoder}", *changes])
    return read_recipe(table, "higen.toml")


@pytest.fixture
def trainer(autoencoder, tmp_path):
    return start(recipe_of(autoencoder), tmp_path / "run", CPU)


def test_frames_are_encoded_alone():
    torch.manual_seed(0)
    network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=4, downsample=(1, 4, 4), norm_groups=4, framewise=True))
    video = torch.randn(2, 3, 5, 8, 8)
    latents = network.encode(video)
    assert latents.shape == (2, 4, 5, 2, 2)
    torch.testing.assert_close(latents[:, :, 3:4], network.encode(video[:, :, 3:4]))
    torch.testing.assert_close(network.decode(latents)[:, :, 1:2], network.decode(latents[:, :, 1:2]))
    with pytest.raises(ValueError, match="frame-wise autoencoder has a factor of 1 in time, found 2"):
        VideoAutoencoderConfig(downsample=(2, 4, 4), framewise=True)


def test_cues_are_those_of_the_clips(trainer):
    """Prior: the middle frame. Motion: whole numbers, one per step. Appearance: ones on a clip that does not change."""
    task = trainer.task
    mean, logvar, tokens, features, motion = task.batch(torch.tensor([0, 3]), torch.tensor([0, 0]))
    latents = task._sample(mean, logvar, torch.zeros(mean.shape))
    cues = task._cues(latents, None, features, motion)
    assert torch.equal(cues["prior"], latents[:, :, 2])
    assert cues["motion"].shape == (2, 3) and cues["motion"].dtype == torch.int64 and (cues["motion"] >= 0).all()
    distance = (latents[0, :, 1] - latents[0, :, 0]).norm() * (7168 / latents[0, :, 0].numel()) ** 0.5
    assert int(cues["motion"][0, 0]) == int(10 * distance)
    assert cues["appearance"].shape == (2, 4, 32)
    still = task._cues(latents, None, features[:, :1].expand(-1, 4, -1), motion)
    torch.testing.assert_close(still["appearance"], torch.ones(2, 4, 32), rtol=0, atol=1e-5)


def test_every_second_step_is_on_pictures_and_moves_no_temporal_layer(trainer):
    task, calls = trainer.task, []
    task.unet.register_forward_pre_hook(
        lambda module, inputs, cues: calls.append((tuple(inputs[0].shape), sorted(cues))), with_kwargs=True
    )
    batch = task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    for step in range(2):
        task.unet.zero_grad()
        task.losses(batch, step).objectives["denoiser"].backward()
        moved = {name for name, weight in task.unet.named_parameters() if weight.grad is not None}
        assert any("temporal" in name for name in moved) == (step == 0)
    assert calls == [((4, 4, 4, 4, 4), ["appearance", "motion", "prior"]), ((8, 4, 1, 4, 4), [])]


def test_the_prior_is_level_and_there_are_no_pictures_before_their_steps(autoencoder, tmp_path):
    task, priors = start(recipe_of(autoencoder, "prior_start=2", "pictures.start=4"), tmp_path, CPU).task, []
    task.unet.register_forward_pre_hook(lambda module, inputs, cues: priors.append(cues.get("prior")), with_kwargs=True)
    batch = task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    for step in range(6):
        torch.manual_seed(0)
        task.losses(batch, step)
    spread = [None if prior is None else float(prior.std(dim=(2, 3)).max()) for prior in priors]
    assert spread[0] == pytest.approx(0, abs=1e-6) and spread[1] == pytest.approx(0, abs=1e-6)
    assert min(spread[2:5]) > 0.01 and spread[5] is None
    torch.testing.assert_close(priors[0].mean(dim=(2, 3)), priors[2].mean(dim=(2, 3)), rtol=0, atol=1e-5)


def test_videos_are_tried_with_another_caption_on_the_same_noise(autoencoder, tmp_path):
    settings = ("caption_preference=2", "preference_clips=3", "preference_start=990", "caption_dropout=1")
    changes = ("data.two_objects=1", *(f"diffusion.{setting}" for setting in settings))
    task, calls = start(recipe_of(autoencoder, *changes), tmp_path, CPU).task, []
    task.unet.register_forward_pre_hook(lambda module, inputs, cues: calls.append((inputs, cues)), with_kwargs=True)
    batch = task.batch(torch.arange(16), torch.zeros(16, dtype=torch.int64))
    rows, others = task._others.draw(task.tokens[:16], 3)
    losses = task.losses(batch, 0)
    (own, own_cues), (other, other_cues), (whole, _) = calls
    for given, again in zip(own[:2], other[:2], strict=True):
        assert torch.equal(given, again)
    assert all(torch.equal(cue, other_cues[name]) for name, cue in own_cues.items())
    assert (own[1] >= 990).all()
    # Their captions are kept, those of the denoiser's own loss are all left out here.
    torch.testing.assert_close(own[2], task.text_encoder(task.tokens[rows]))
    torch.testing.assert_close(other[2], task.text_encoder(others))
    assert whole[2].shape[0] == 16
    # The network starts at nothing, so both captions are alike at first.
    assert losses.metrics["preference"].item() == pytest.approx(math.log(2), rel=1e-5)
    plain = losses.objectives["denoiser"] - 2 * losses.metrics["preference"]
    assert plain.item() == pytest.approx(losses.metrics["loss"].item(), rel=1e-5)
    calls.clear()
    # A step on pictures, which show no direction.
    assert "preference" not in task.losses(batch, 1).metrics
    assert len(calls) == 1


def test_gradients_of_spatial_layers_are_scaled(autoencoder, tmp_path):
    gradients = []
    for index, factor in enumerate((1.0, 0.25)):
        task = start(recipe_of(autoencoder, f"spatial_gradient={factor}"), tmp_path / str(index), CPU).task
        torch.manual_seed(1)
        for parameter in task.unet.parameters():
            parameter.data.normal_(std=0.2)
        batch = task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))
        task.losses(batch, 0).objectives["denoiser"].backward()
        task.before_step()
        gradients.append({name: weight.grad for name, weight in task.unet.named_parameters()})
    whole, scaled = gradients
    for name in ("conv_in.weight", "skeleton.middle.0.attention.spatial.block.spatial.qkv.weight"):
        torch.testing.assert_close(scaled[name], 0.25 * whole[name])
    for name in ("prior_in.weight", "resampler.project_in.weight", "temporal_in.project_in.weight"):
        torch.testing.assert_close(scaled[name], whole[name])


def test_a_run_is_trained_resumed_and_exported(autoencoder, tmp_path):
    run, out = tmp_path / "run", tmp_path / "tiny.safetensors"
    command = ["train", str(TINY / "higen.toml"), "--out", str(run), "--set", f"autoencoder.path={autoencoder}"]
    assert main([*command, "--device", "cpu", "--max-steps", "2"]) == 0
    assert main(["resume", str(run), "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]
    assert main(["export", str(run), "--out", str(out)]) == 0
    checkpoint = read(out)
    assert checkpoint.family == "higen" and checkpoint.component("diffusion_model").network is HiGenUNet
    assert checkpoint.component("vae").config.framewise
    schedule = checkpoint.schedule
    assert (schedule.zero_terminal_snr, schedule.prediction, schedule.offset_noise) == (True, "velocity", 0.1)
    assert (checkpoint.latent.spatial, checkpoint.latent.temporal) == (4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network.text_width=24", "network.text_width: found 24, the text encoder has 16"),
        ("network.head_width=3", "expected a multiple of 3"),
        ("network.resampler_heads=5", "expected a multiple of 5"),
        ("cues.features.kind=words", "cues.features.kind: found 'words', expected one of 'encoder', 'colours'"),
        ("pictures.share=2", "pictures.share: found 2.0, expected at most 1"),
    ],
)
def test_impossible_recipes_are_refused(autoencoder, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(autoencoder, change)


def test_an_autoencoder_that_shrinks_time_is_refused(tmp_path):
    folder = tmp_path / "autoencoder"
    assert main(["train", str(TINY / "autoencoder.toml"), "--out", str(folder), "--device", "cpu"]) == 0
    with pytest.raises(RecipeError, match="has one latent for 2 frames, HiGen needs one for each"):
        start(recipe_of(folder), tmp_path / "run", CPU)


def test_appearance_of_a_fading_clip_is_a_line():
    """Similarity of a frame to another falls evenly from 1 to 0 at the double, wherever the object is."""
    config = MovingShapesConfig(size=64, frames=9, two_objects=0.5, fade=0.69)
    data = MovingShapes(config)
    videos, _ = stack_videos(data, list(range(12)))
    found = measured_appearance(Colours()(videos), "cosine")
    for index in range(12):
        brightness = data.clip(index).objects[0].colours.max(axis=1)
        doublings = torch.from_numpy(np.abs(np.log2(brightness[:, None] / brightness[None, :])))
        # Bins of a sixteenth, edges of objects, two objects that meet.
        torch.testing.assert_close(found[index].double(), 1 - doublings, rtol=0, atol=0.08)


@pytest.mark.parametrize(("spread", "frames"), [(0.0, {2}), (0.5, {1, 2}), (1.0, {0, 1, 2, 3})])
def test_pictures_come_from_around_the_middle(autoencoder, tmp_path, spread, frames):
    task = start(recipe_of(autoencoder, f"pictures.spread={spread}", "pictures.per_clip=24"), tmp_path, CPU).task
    seen = []
    task._objective = lambda pictures, tokens, **cues: seen.append(pictures)
    batch = list(task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64)))
    batch[0] = torch.arange(4.0).view(1, 1, 4, 1, 1).expand_as(batch[0])  # each frame's latents are its number
    batch[1] = torch.full_like(batch[1], -60.0)
    task.facts |= {"scale": 1.0, "shift": 0.0}
    task.losses(tuple(batch), 1)
    assert set(seen[0].round().unique().tolist()) == frames


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_features_of_an_image_encoder(tmp_path, kind):
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "clip":
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, intermediate_size=32, projection_dim=8))
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(tmp_path)
    encoder = ImageEncoder(tmp_path, CPU)
    videos = torch.randint(0, 256, (2, 3, 32, 40, 3), dtype=torch.uint8)
    features = encoder(videos)
    assert features.shape == (2, 3, 8 if kind == "clip" else 16)
    torch.testing.assert_close(encoder(videos[1:, 2:])[0, 0], features[1, 2], rtol=0, atol=1e-5)


def test_the_recipe_of_the_paper_has_the_released_network():
    recipe = read_recipe(read_table(RECIPES / "higen.toml"), "higen.toml")
    with torch.device("meta"):
        network = HiGenUNet(recipe.network)
    assert sum(weight.numel() for weight in network.parameters()) == 1_483_201_924
    assert recipe.schedule.noise_schedule().alphas_cumprod()[-1] == 0
