"""Text-to-video training on Stable Diffusion's autoencoder and CLIP, with tiny random copies of both."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from weft.kernels.networks.lvdm import TextToVideoUNet
from weft.model_loaders.checkpoint import read
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.export import export
from weft.training.first_stage import ImageAutoencoder, load_autoencoder
from weft.training.metrics import read_rows
from weft.training.sample import Sampler
from weft.training.sections import ImageFirstStage
from weft.training.settings import InputError, RecipeError

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "lvdm_text_to_video.toml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vae` in diffusers' layout and `clip` in transformers' layout."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder / "vae")
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "clip")
    (folder / "clip" / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "clip" / "merges.txt").write_text("#version: 0.2\n")
    return folder


def recipe_of(parts: Path, *more: str):
    table = read_table(RECIPE)
    table["data"] = {"kind": "moving_shapes", "size": 16, "frames": 4, "count": 8}
    settings = [f"autoencoder.path={parts / 'vae'}", f"text_encoder.path={parts / 'clip'}", "run.precision=float32"]
    settings += [
        "network.model_channels=8",
        "network.channel_mult=[1, 2]",
        "network.attention_factors=[1, 2]",
        "network.num_heads=2",
        "run.steps=2",
    ]
    settings += ["network.context_width=16", "run.validation_clips=2", "run.log_every=1", *more]
    override(table, settings)
    return read_recipe(table, "r.toml")


def test_frozen_parts_train_only_the_unet(parts, tmp_path):
    trainer = start(recipe_of(parts), tmp_path, CPU)
    assert set(trainer.task.networks) == {"diffusion_model"}
    assert trainer.task.tokens.shape == (8, 12)
    text = {name: tensor.clone() for name, tensor in trainer.task.text_encoder.state_dict().items()}
    trainer.run(max_steps=1)
    resume(tmp_path, CPU).run()
    assert all(torch.equal(tensor, text[name]) for name, tensor in trainer.task.text_encoder.state_dict().items())
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row] == [1, 2]

    export([tmp_path], tmp_path / "unet.safetensors")
    checkpoint = read(tmp_path / "unet.safetensors")
    assert set(checkpoint.components) == {"diffusion_model"}
    assert checkpoint.components["diffusion_model"].network is TextToVideoUNet
    latent = checkpoint.latent
    assert (latent.scale, latent.shift, latent.spatial, latent.temporal) == (0.18215, 0.0, 2, 1)


def test_frames_are_encoded_one_by_one(parts, tmp_path):
    network = load_autoencoder(ImageFirstStage(path=str(parts / "vae")), tmp_path)
    assert isinstance(network, ImageAutoencoder)
    torch.manual_seed(0)
    video = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, logvar = network.moments(video)
        alone = network.network.encode(video[1, :, 2][None]).latent_dist
    assert mean.shape == logvar.shape == (2, 4, 4, 8, 8)
    # Another batch size may take another convolution path.
    torch.testing.assert_close(mean[1, :, 2], alone.mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar[1, :, 2], alone.logvar[0], rtol=1e-4, atol=1e-5)


def test_missing_parts_are_named(parts, tmp_path):
    for path, message in (
        ("autoencoder.path=x", "autoencoder.path: x does not exist"),
        ("text_encoder.path=x", "text_encoder.path: x is no folder with a CLIP text model"),
        ("network.context_width=8", "network.context_width: found 8, the text encoder has 16"),
    ):
        with pytest.raises(RecipeError, match=message):
            start(recipe_of(parts, path), tmp_path / message[:12], CPU)


def test_sampling_needs_own_parts(parts, tmp_path):
    start(recipe_of(parts, "run.steps=1"), tmp_path, CPU).run()
    with pytest.raises(InputError, match="sample with ComfyUI"):
        Sampler(tmp_path, CPU)
