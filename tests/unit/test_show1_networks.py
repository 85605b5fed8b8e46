"""Show-1's stages against numbers of the released implementation, and against diffusers."""

import dataclasses
import json
import lzma
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel

from weft.kernels.layers import chunking
from weft.kernels.networks.higen import SpaceTimeUNet, SpaceTimeUNetConfig
from weft.kernels.networks.show1 import PixelUNet, PixelUNetConfig
from weft.model_loaders import higen
from weft.model_loaders.keymap import check_tensors, strip_prefix
from weft.model_loaders.show1 import UPSCALER_DIVISOR, unet_component

DATA = Path(__file__).resolve().parents[1] / "data" / "show1"
# Absolute, of outputs with a deviation of 0.6 to 0.8: rounding in float32; a wrong epsilon of a norm exceeds it.
TOLERANCE = 3e-5
# Of the output's standard deviation: the same products in another order round differently.
RELATIVE = 3e-5

BASE = PixelUNetConfig()
SR1 = PixelUNetConfig(
    in_channels=6,
    model_channels=128,
    channel_mult=(1, 2, 4, 6, 6),
    num_res_blocks=(2, 2, 3, 4, 2),
    attention_factors=(8, 16),
    embedding_width=768,
    context_width=768,
    noise_levels=1000,
    residual_divisor=UPSCALER_DIVISOR,
)
FIRST_FRAME = dataclasses.replace(
    SR1,
    model_channels=160,
    channel_mult=(1, 2, 4, 6, 8),
    num_res_blocks=(2, 2, 3, 5, 5),
    embedding_width=1280,
    context_width=1280,
    temporal=False,
)
TINY = PixelUNetConfig(
    in_channels=6,
    model_channels=32,
    channel_mult=(1, 2, 1),
    num_res_blocks=(1, 2, 1),
    attention_factors=(2, 4),
    embedding_width=48,
    text_width=40,
    context_width=64,
    pooling_heads=4,
    head_width=16,
    temporal_heads=4,
    noise_levels=1000,
    residual_divisor=UPSCALER_DIVISOR,
)


def read(name):
    """What the .json says, the weights in float32, and inputs, output and probes of a file."""
    tensors = safetensors.torch.load(lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes()))
    weights = {key: tensor.float() for key, tensor in strip_prefix(tensors, "weights.").items()}
    return json.loads((DATA / f"{name}.json").read_text()), weights, tensors


def manifest(name):
    """Names and shapes of a released file as tensors of one byte each."""
    shapes = json.loads(lzma.decompress((DATA / f"{name}.keys.json.xz").read_bytes()))
    byte = torch.zeros((), dtype=torch.float8_e4m3fn)
    return {key: byte.expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(("name", "loader"), [("base", unet_component), ("sr2", higen.unet_component)])
@torch.no_grad()
def test_released_numbers(name, loader):
    said, weights, tensors = read(name)
    network = loader(weights, said["unet_config"]).build()
    given = (tensors[f"input.{key}"] for key in ("sample", "timestep", "encoder_hidden_states"))
    torch.testing.assert_close(network(*given), tensors["output"], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_released_numbers_on_the_way():
    said, weights, tensors = read("base")
    network = unet_component(weights, said["unet_config"]).build()
    text, times = tensors["input.encoder_hidden_states"], tensors["input.timestep"]
    encoded = network.encode_text(text)
    found = {
        "time_embedding": network._embed(times, text),
        "add_embedding": encoded["text_embedding"],
        "encoder_hid_proj": network.text_in(text),
    }
    for key, value in found.items():
        torch.testing.assert_close(value, tensors[f"probe.{key}"], rtol=0, atol=TOLERANCE)
    # A text that was encoded before is all the network needs of it.
    once = network(tensors["input.sample"], times, **encoded)
    torch.testing.assert_close(once, network(tensors["input.sample"], times, text), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loader", "network", "config", "parameters"),
    [
        ("base", unet_component, PixelUNet, BASE, 1_726_848_390),
        ("interpolation", unet_component, PixelUNet, dataclasses.replace(BASE, in_channels=7), 1_726_859_910),
        ("sr1", unet_component, PixelUNet, SR1, 796_343_046),
        ("sr1_first_frame", unet_component, PixelUNet, FIRST_FRAME, 1_243_277_190),
        ("sr2", higen.unet_component, SpaceTimeUNet, SpaceTimeUNetConfig(), 1_411_233_860),
    ],
)
def test_released_tensors(name, loader, network, config, parameters):
    tensors = manifest(name)
    component = loader(tensors)
    assert (component.network, component.config) == (network, config)
    check_tensors(component.blank(), component.tensors, name)
    assert sum(tensor.numel() for tensor in component.tensors.values()) == parameters
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters


def randomised(network):
    """Every weight has a value of its own, norms around one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise / weight[0].numel() ** 0.5 if weight.ndim > 1 else weight + 0.2 * noise)
    return network.eval()


def inputs(config, frames=3, text_width=None):
    """Arguments of a call: two videos of 8 x 12, times, text, level."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, frames, 8, 12, generator=generator)
    text = torch.randn(2, 7, text_width or config.text_width, generator=generator)
    return x, torch.tensor([3, 900]), text, torch.tensor([150, 250])


@torch.no_grad()
def test_pictures_are_upscaled_by_the_network_of_diffusers(relative_error):
    """The layout of DeepFloyd IF-II, small: levels of different depth, noise level, sums divided by about sqrt(2)."""
    theirs = randomised(
        UNet2DConditionModel(
            in_channels=6,
            out_channels=6,
            block_out_channels=(32, 64, 96),
            layers_per_block=(1, 2, 1),
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            act_fn="gelu",
            cross_attention_dim=64,
            attention_head_dim=16,
            cross_attention_norm="group_norm",
            encoder_hid_dim=40,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            class_embed_type="timestep",
            time_embedding_dim=48,
            time_embedding_act_fn="gelu",
            resnet_time_scale_shift="scale_shift",
            resnet_skip_time_act=True,
            resnet_out_scale_factor=UPSCALER_DIVISOR,
            mid_block_scale_factor=UPSCALER_DIVISOR,
        )
    )
    component = unet_component(theirs.state_dict(), dict(theirs.config))
    assert component.config == dataclasses.replace(TINY, channel_mult=(1, 2, 3), temporal=False, temporal_heads=16)
    assert component.config.stage == "first frame"
    x, times, text, level = inputs(component.config, frames=1)
    expected = theirs(x[:, :, 0], times, text, class_labels=level).sample
    assert relative_error(component.build()(x, times, text, level)[:, :, 0], expected) < RELATIVE


@torch.no_grad()
def test_heads_of_the_latent_stage_are_counted(relative_error):
    """What diffusers' class takes as the width of a head, Show-1's takes as their number."""
    theirs = randomised(
        UNet3DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=24,
            attention_head_dim=8,
        )
    )
    x, times, text, _ = inputs(SpaceTimeUNetConfig(), text_width=24)
    expected = theirs(x, times, text).sample
    settings = {higen.SHOW1_MARK: True, "attention_head_dim": [4, 8], "norm_num_groups": 32}
    tensors = theirs.state_dict()
    counted = higen.unet_component(tensors, settings)
    assert counted.config.heads == (4, 8)
    assert relative_error(counted.build()(x, times, text), expected) < RELATIVE
    # Without Show-1's settings the first temporal transformer tells how wide a head is.
    assert relative_error(higen.unet_component(tensors).build()(x, times, text), expected) < RELATIVE
    same = higen.unet_component(tensors, {**settings, "attention_head_dim": 8})
    assert same.config.heads == (8, 8)
    # Another number of heads is another network, by far more than rounding.
    assert relative_error(same.build()(x, times, text), expected) > 0.01


@torch.no_grad()
def test_super_resolution_is_that_of_pictures_where_nothing_moves(relative_error):
    """With layers over time that add nothing, every frame is upscaled by itself."""
    video = randomised(PixelUNet(TINY))
    for name, weight in video.named_parameters():
        if ".temporal.convs.3." in name or ".temporal.project_out." in name:
            weight.zero_()
    pictures = PixelUNet(dataclasses.replace(TINY, temporal=False))
    kept = {name: weight for name, weight in video.state_dict().items() if ".temporal." not in name}
    pictures.load_state_dict(kept)
    x, *given = inputs(TINY)
    together = video(x, *given)
    alone = torch.cat([pictures(frame, *given) for frame in x.split(1, 2)], 2)
    assert relative_error(together, alone) < RELATIVE
    # The same pictures, all at once.
    assert relative_error(pictures(x, *given), alone) < RELATIVE


@pytest.mark.parametrize("budget", [1, 60_000])
@torch.no_grad()
def test_chunks_equal_whole(monkeypatch, relative_error, budget):
    network, given = randomised(PixelUNet(TINY)), inputs(TINY)
    before = [tensor.clone() for tensor in given]
    whole = network(*given)
    monkeypatch.setitem(chunking._BUDGET_BYTES, "cpu", budget)
    assert relative_error(network(*given), whole) < RELATIVE
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


def test_weights_get_gradients_where_inference_overwrites(relative_error):
    network, given = randomised(PixelUNet(TINY)), inputs(TINY)
    found = network(*given)
    with torch.no_grad():
        assert relative_error(network(*given), found.detach()) < RELATIVE
    found.square().mean().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


@torch.no_grad()
def test_padding_and_the_noise_level_are_seen(relative_error):
    """The text's norm takes all tokens together; the level of the noise is an input like the time."""
    network, (x, times, text, level) = randomised(PixelUNet(TINY)), inputs(TINY)
    expected = network(x, times, text, level)
    longer = torch.cat([text, text.new_zeros(2, 3, text.shape[2])], 1)
    assert relative_error(network(x, times, longer, level), expected) > 0.01
    assert relative_error(network(x, times, text, 0 * level), expected) > 0.01


@torch.no_grad()
def test_what_cannot_be_computed_is_refused():
    network, (x, times, text, level) = PixelUNet(TINY), inputs(TINY)
    with pytest.raises(ValueError, match="must have width 40, found width 24"):
        network(x, times, text[..., :24], level)
    with pytest.raises(ValueError, match="must have width 40, found none"):
        network(x, times, noise_level=level)
    with pytest.raises(ValueError, match="needs the level of the noise on the small video"):
        network(x, times, text)
    with pytest.raises(ValueError, match="height x width 8x10, this network takes multiples of 4"):
        network(x[..., :10], times, text, level)
    base = PixelUNet(dataclasses.replace(TINY, in_channels=3, noise_levels=0))
    with pytest.raises(ValueError, match="This stage knows no noise level"):
        base(x[:, :3], times, text, level)
    with pytest.raises(ValueError, match="head_width is 24, expected a divisor of the 64 channels there"):
        PixelUNet(dataclasses.replace(TINY, head_width=24))
    with pytest.raises(ValueError, match="temporal_heads is 5, expected a divisor of the 64 channels there"):
        PixelUNet(dataclasses.replace(TINY, temporal_heads=5))


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, "base"),
        ({"in_channels": 7}, "interpolation"),
        ({"in_channels": 6, "noise_levels": 1000}, "sr1"),
        ({"in_channels": 6, "noise_levels": 1000, "temporal": False}, "first frame"),
        ({"temporal": False}, None),
        ({"in_channels": 6}, None),
        ({"in_channels": 4}, None),
        ({"noise_levels": 1000}, None),
    ],
    ids=str,
)
def test_stages(changes, stage):
    assert dataclasses.replace(BASE, **changes).stage == stage
