"""UNet-A and its blocks against numbers of the released implementation."""

import pytest
import torch

from weft.kernels.layers.embeddings import sinusoid
from weft.kernels.layers.resnet import Downsample, ResidualBlock, Step, Upsample
from weft.kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig, SpaceTimeAttention
from weft.model_loaders.keymap import strip_prefix
from weft.model_loaders.lvdm import UNET_KEYS, unet_component

# Of the output's standard deviation: rounding in float32; the released code itself is reproduced no better.
TOLERANCE = 3e-5

# A block's place in the released network, and in ours.
RESIDUAL = ("output_blocks.0.0.", "skeleton.up.0.residual.")
ATTENTION = ("output_blocks.0.1.", "skeleton.up.0.attention.")
DOWN = ("input_blocks.1.0.", "skeleton.down.0.downsample.")
UP = ("output_blocks.0.1.", "skeleton.up.0.upsample.")


def load(block, tensors, case, place):
    released, ours = place
    weights = {released + name: tensor for name, tensor in strip_prefix(tensors, f"{case}.w.").items()}
    block.load_state_dict(strip_prefix(UNET_KEYS(weights), ours))
    return block


def as_frames(video):
    return video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def as_video(frames, count):
    return frames.unflatten(0, (-1, count)).transpose(1, 2)


@pytest.mark.parametrize("case", ["res_scale_shift", "res_add"])
@torch.no_grad()
def test_residual_block(parity, relative_error, case):
    _, tensors = parity("blocks")
    x, expected = tensors[f"{case}.x"], tensors[f"{case}.out"]
    block = ResidualBlock(x.shape[1], expected.shape[1], 64, scale_shift=case == "res_scale_shift")
    load(block, tensors, case, RESIDUAL)
    step = Step(x.shape[2], torch.nn.functional.silu(tensors[f"{case}.emb"]))
    found = as_video(block(as_frames(x), step), step.frames)
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize(("case", "heads", "length"), [("st_attention", 4, 5), ("st_attention_clip", 2, 2)])
@torch.no_grad()
def test_attention_block(parity, relative_error, case, heads, length):
    _, tensors = parity("blocks")
    x = tensors[f"{case}.x"]
    block = SpaceTimeAttention(x.shape[1], LatentVideoUNetConfig(num_heads=heads, temporal_length=length))
    load(block, tensors, case, ATTENTION)
    found = as_video(block(as_frames(x), Step(x.shape[2], torch.empty(0))), x.shape[2])
    assert relative_error(found, tensors[f"{case}.out"]) < TOLERANCE


@pytest.mark.parametrize(("case", "kind", "place"), [("down", Downsample, DOWN), ("up", Upsample, UP)])
@torch.no_grad()
def test_resampling(parity, relative_error, case, kind, place):
    _, tensors = parity("blocks")
    x = tensors[f"{case}.x"]
    block = load(kind(x.shape[1]), tensors, case, place)
    assert relative_error(as_video(block(as_frames(x)), x.shape[2]), tensors[f"{case}.out"]) < TOLERANCE


def test_sinusoid(parity):
    _, tensors = parity("unet_uncond")
    expected = tensors["time_embedding_sinusoid"]
    torch.testing.assert_close(sinusoid(tensors["a.timesteps"], 32), expected, rtol=0, atol=1e-6)


def unet(parity, name):
    """The network of a parity file, its configuration read from shapes alone, and the file."""
    description, tensors = parity(name)
    component = unet_component(strip_prefix(tensors, "w."))
    said = description["config"]
    expected = LatentVideoUNetConfig(
        in_channels=said["in_channels"],
        out_channels=said["out_channels"],
        model_channels=said["model_channels"],
        channel_mult=tuple(said["channel_mult"]),
        num_res_blocks=said["num_res_blocks"],
        attention_factors=tuple(said["attention_resolutions"]),
        num_heads=said["num_heads"],
        temporal_length=said["temporal_length"],
        relative_positions=said["use_relative_position"],
        scale_shift=said["use_scale_shift_norm"],
        noise_levels=said.get("num_classes", 0),
    )
    assert component.network is LatentVideoUNet
    assert component.config == expected
    return component.build(), tensors


@torch.no_grad()
def test_unconditional_unet(parity, relative_error):
    network, tensors = unet(parity, "unet_uncond")
    assert relative_error(network(tensors["x"], tensors["a.timesteps"]), tensors["a.out"]) < TOLERANCE


@torch.no_grad()
def test_mask_conditional_unet(parity, relative_error):
    network, tensors = unet(parity, "unet_mask_cond")
    z, mask, steps = tensors["z_t"], tensors["mask"], tensors["timesteps"]
    replaced = z * (1 - mask) + tensors["cond"] * mask
    marked, unmarked = torch.cat([replaced, mask], 1), torch.cat([replaced, torch.zeros_like(mask)], 1)
    torch.testing.assert_close(marked, tensors["unet_input"], rtol=0, atol=0)
    found = {
        "out_cond": network(marked, steps, noise_level=tensors["noise_level"]),
        "out_cond_without_level": network(marked, steps),
        "out_uncond": network(unmarked, steps),
    }
    errors = {case: relative_error(out, tensors[case]) for case, out in found.items()}
    assert max(errors.values()) < TOLERANCE, errors
    # The level and the mark are seen: the cases differ by far more than rounding.
    assert relative_error(found["out_cond"], tensors["out_cond_without_level"]) > 0.01
    assert relative_error(found["out_uncond"], tensors["out_cond_without_level"]) > 0.01
