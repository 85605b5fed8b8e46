"""Settings that contradict each other: named before anything is built or encoded; those that work are let through."""

from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder
from weft.training.build import start
from weft.training.config import override, read_recipe, read_table
from weft.training.data.moving_shapes import MovingShapesConfig, write_dataset
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
CPU = torch.device("cpu")


def tiny(task: str, *settings: str):
    table = read_table(TINY / f"{task}.toml")
    override(table, ["autoencoder.path=x", *settings] if task == "text_to_video" else list(settings))
    return read_recipe(table, "r.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.frames=5"], r"data.frames: found 5, expected a multiple of 2 \(network.downsample in time\)"),
        (["data.size=18"], "data.size: found 18, expected a multiple of 4"),
        (["crops.size=10"], "crops.size: found 10, expected a multiple of 4"),
        (["crops.size=32"], "crops.size: found 32, expected at most data.size = 16"),
        (["network.downsample=[2, 3, 4]"], r"network.downsample: found \[2, 3, 4\], expected powers of two"),
        (["network.downsample=[0, 4, 4]"], r"network.downsample: found \[0, 4, 4\], expected powers of two"),
        (["network.n_hiddens=0"], "network.n_hiddens: found 0, expected at least 1"),
        (["network.z_channels=0"], "network.z_channels: found 0, expected at least 1"),
        (["network.embed_dim=-1"], "network.embed_dim: found -1, expected at least 1"),
        (["network.norm_groups=0"], "network.norm_groups: found 0, expected at least 1"),
        (["network.image_channels=1"], "network.image_channels: found 1, expected 3"),
        (["loss.discriminator_channels=[]"], "loss.discriminator_channels: found none, expected at least one width"),
        (
            ["loss.discriminator_channels=[4, 4, 4, 4, 4]", "loss.discriminator_start=1"],
            "loss.discriminator_channels: 5 widths leave no patch of frames with data.size = 16",
        ),
        (["seed=4294967296"], "seed: found 4294967296, expected at most 4294967295"),
    ],
)
def test_impossible_autoencoders(settings, message):
    with pytest.raises(RecipeError, match=f"^r.toml: {message}"):
        tiny("autoencoder", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["network.num_heads=3"], r"network: width: found 16, expected a multiple of 3 \(network.num_heads\)"),
        (["network.num_heads=0"], "network.num_heads: found 0, expected at least 1"),
        (["network.model_channels=9"], "network.model_channels: found 9, expected an even number"),
        (["network.model_channels=0"], "network.model_channels: found 0, expected at least 1"),
        (["network.out_channels=8"], "network.out_channels: found 8, expected network.in_channels = 4"),
        (["network.attention_factors=[2, 8]"], "network.attention_factors: found 8, expected .* 2 levels: 1, 2"),
        (["network.channel_mult=[]"], r"network.channel_mult: found \[\], expected a factor of at least 1"),
        (["network.channel_mult=[1, 0]"], r"network.channel_mult: found \[1, 0\], expected a factor of at least 1"),
        (["network.num_res_blocks=0"], "network.num_res_blocks: found 0, expected at least 1"),
        (["network.depth=0"], "network.depth: found 0, expected at least 1"),
        (["network.temporal_length=0"], "network.temporal_length: found 0, expected at least 1"),
        (["text_encoder.heads=3"], r"text_encoder.width: found 16, expected a multiple of 3 \(text_encoder.heads\)"),
        (["text_encoder.width=32"], "network.context_width: found 16, the text encoder has 32"),
        (["schedule.linear_start=0.02"], "schedule.linear_start: found 0.02, expected less than .* = 0.0155"),
        (["schedule.linear_end=1"], "schedule.linear_end: found 1.0, expected less than 1"),
        (
            ["diffusion.caption_preference=1", "diffusion.preference_start=1000"],
            "diffusion.preference_start: found 1000, expected less than the schedule's 1000 times",
        ),
        (["rare.start=9", "rare.end=8"], "rare.end: found 8, expected at least rare.start = 9"),
        (["seed=99999999999999999999"], "seed: found 99999999999999999999, expected at most"),
    ],
)
def test_impossible_text_to_video_models(settings, message):
    with pytest.raises(RecipeError, match=f"^r.toml: {message}"):
        tiny("text_to_video", *settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["loss.discriminator_channels=[4]", "seed=4294967295"],
        ["loss.discriminator_channels=[4, 4, 4]", "loss.discriminator_start=1"],
        ["network.downsample=[1, 1, 1]", "crops.steps=0", "crops.size=10"],
    ],
)
def test_settings_at_the_edge_of_the_possible_train(settings, tmp_path):
    assert start(tiny("autoencoder", *settings), tmp_path, CPU).run() is None


def test_directions_are_preferred_where_clips_have_them():
    key = "diffusion.caption_preference"
    table = read_table(TINY / "text_to_video.toml") | {"data": {"size": 16, "frames": 4}}
    override(table, ["autoencoder.path=x", f"{key}=1", "data.kind=folder", "data.path=x"])
    with pytest.raises(RecipeError, match=f"^r.toml: {key}: found it with data of kind 'folder', expected moving_shap"):
        read_recipe(table, "r.toml")
    table = read_table(RECIPES / "demo_image.toml")
    override(table, [f"{key}=1", "captions.places=0"])
    with pytest.raises(RecipeError, match=f"^r.toml: {key}: found it with captions.places = 0, expected more"):
        read_recipe(table, "r.toml")


def test_a_network_without_position_tables_needs_no_length():
    assert tiny("text_to_video", "network.relative_positions=false", "network.temporal_length=0")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    start(tiny("autoencoder"), folder, CPU).run()
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.frames=5"], "data.frames: found 5, the autoencoder takes multiples of 2"),
        (["data.size=18"], "data.size: found 18, the autoencoder takes multiples of 4"),
        (["network.in_channels=3", "network.out_channels=3"], "network.in_channels: found 3, the autoencoder has 4"),
        (["text_encoder.max_tokens=5"], "text_encoder.max_tokens: found 5, expected at least"),
        (['rare.containing=["sideways"]'], "rare.containing: no caption contains 'sideways'"),
        (['rare.containing=["a "]'], "rare.containing: every caption is one of them"),
    ],
)
def test_parts_that_do_not_fit_are_found_before_encoding(settings, message, autoencoder, tmp_path, monkeypatch):
    monkeypatch.delattr(VideoAutoencoder, "moments")
    with pytest.raises(RecipeError, match=message):
        start(tiny("text_to_video", f"autoencoder.path={autoencoder}", *settings), tmp_path, CPU)


def test_a_folder_without_captions_is_refused_before_encoding(autoencoder, tmp_path, monkeypatch):
    write_dataset(tmp_path / "clips", 3, MovingShapesConfig(size=16, frames=4, count=3))
    (tmp_path / "clips" / "captions.jsonl").unlink()
    table = read_table(TINY / "text_to_video.toml")
    table["data"] = {"kind": "folder", "path": str(tmp_path / "clips"), "size": 16, "frames": 4, "held_out": 1}
    override(table, [f"autoencoder.path={autoencoder}"])
    monkeypatch.delattr(VideoAutoencoder, "moments")
    with pytest.raises(RecipeError, match="none of the clips has a caption; expected captions.jsonl"):
        start(read_recipe(table, "r.toml"), tmp_path / "run", CPU)
