"""Configurations are read from shapes: networks of other sizes than the released ones come back with equal outputs."""

import dataclasses

import pytest
import safetensors.torch
import torch

from weft.kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoderConfig
from weft.model_loaders.checkpoint import MODEL, VAE, read

# Of the output's standard deviation: the same products in another order round differently.
TOLERANCE = 3e-5
TIMES = torch.tensor([1, 981])

VIDEO = LatentVideoUNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), num_heads=4, temporal_length=4
)
TEXT = TextToVideoUNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_factors=(1,),
    num_heads=8,
    context_width=24,
    temporal_length=4,
)


def save(network, path):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (1, 2, 3), "attention_factors": (2, 4)},
        {"channel_mult": (1, 1, 2, 2), "attention_factors": (8,)},
        {"channel_mult": (1,), "attention_factors": (1,)},
        {"attention_factors": ()},
        {"attention_factors": (1, 2)},
        {"num_res_blocks": 3},
        {"num_heads": 1},
        {"num_heads": 16},
        {"temporal_length": 1},
        {"temporal_length": 16},
        {"scale_shift": False},
        {"in_channels": 5, "noise_levels": 11},
        {"in_channels": 3, "out_channels": 3, "model_channels": 64},
    ],
    ids=lambda changes: " ".join(changes),
)
@torch.no_grad()
def test_models_on_the_3d_autoencoder(tmp_path, released, relative_error, changes):
    config = dataclasses.replace(VIDEO, **changes)
    peer = released.network(config)
    component = read(save(peer, tmp_path / "sky.safetensors")).component(MODEL)
    assert component.config == config
    x = noise(2, config.in_channels, 5, 8, 16)
    level = torch.tensor([0, 7]) if config.noise_levels else None
    found = component.build()(x, TIMES, noise_level=level)
    assert relative_error(found, peer(x, TIMES, noise_level=level)) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (1, 2, 4), "attention_factors": (1, 2, 4)},
        {"attention_factors": (2,)},
        {"num_res_blocks": 2},
        {"num_heads": 2},
        {"context_width": 7},
        {"temporal_length": 1},
        {"temporal_length": 24},
        {"depth": 3},
    ],
    ids=lambda changes: " ".join(changes),
)
@torch.no_grad()
def test_text_to_video_models(tmp_path, released, relative_error, changes):
    config = dataclasses.replace(TEXT, **changes)
    peer = released.network(config)
    component = read(save(peer, tmp_path / "model.safetensors")).component(MODEL)
    assert component.config == config
    x, context = noise(2, 4, 6, 8, 16), noise(2, 9, config.context_width)
    assert relative_error(component.build()(x, TIMES, context), peer(x, TIMES, context)) < TOLERANCE


@pytest.mark.parametrize("config", [VIDEO, dataclasses.replace(TEXT, num_heads=8)], ids=["video", "text"])
@torch.no_grad()
def test_models_without_position_tables(tmp_path, released, relative_error, config):
    """Without tables there is nothing that tells the heads: the released number is taken."""
    peer = released.network(config)
    for name, weight in peer.named_parameters():
        if "relative_position" in name:
            weight.zero_()
    path = save(peer, tmp_path / "sky.safetensors")
    kept = {name: x for name, x in safetensors.torch.load_file(path).items() if "relative_position" not in name}
    safetensors.torch.save_file(kept, path)
    component = read(path).component(MODEL)
    assert not component.config.relative_positions
    assert component.config.num_heads == config.num_heads
    x, context = noise(2, 4, 6, 8, 16), noise(2, 9, 24)
    # Tables of zeros change nothing.
    assert relative_error(component.build()(x, TIMES, context), peer(x, TIMES, context)) < TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        VideoAutoencoderConfig(n_hiddens=16, downsample=(2, 4, 4)),
        VideoAutoencoderConfig(n_hiddens=32, downsample=(1, 2, 2)),
        VideoAutoencoderConfig(n_hiddens=16, downsample=(4, 8, 8), z_channels=6, embed_dim=3, image_channels=1),
    ],
    ids=lambda config: str(config.downsample),
)
@torch.no_grad()
def test_autoencoders(tmp_path, released, relative_error, config):
    peer = released.network(config)
    path = tmp_path / "ae_sky.ckpt"
    torch.save({"state_dict": released.autoencoder_tensors(peer)}, path)
    component = read(path).component(VAE)
    assert component.config == config
    built = component.build()
    frames, height, width = (2 * factor for factor in config.downsample)
    x, z = noise(2, config.image_channels, frames, height, width), noise(2, config.embed_dim, 3, 2, 4)
    assert relative_error(built.encode(x), peer.encode(x)) < TOLERANCE
    assert relative_error(built.decode(z), peer.decode(z)) < TOLERANCE
