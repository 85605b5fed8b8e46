"""HiGen and ModelScopeT2V against numbers of the released implementation, and against diffusers."""

import dataclasses
import json
import lzma
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import UNet3DConditionModel

from weft.kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig
from weft.kernels.sampling.schedules import NoiseSchedule, alpha_cumprod_of, ddim_sigmas
from weft.model_loaders.checkpoint import MODEL, ReadOptions, interpret
from weft.model_loaders.checkpoint import read as read_checkpoint
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.higen import HIGEN_SCHEDULE, MODELSCOPE_SCHEDULE, unet_component
from weft.model_loaders.keymap import check_tensors, strip_prefix

DATA = Path(__file__).resolve().parents[1] / "data" / "higen"
# Absolute, of outputs with a deviation of about 0.55: rounding in float32; a wrong epsilon of a norm exceeds it.
TOLERANCE = 2e-5


def read(name):
    tensors = safetensors.torch.load(lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes()))
    return json.loads((DATA / f"{name}.json").read_text()), tensors


def formula_weights(shapes, seed):
    """Weights from a hash of their names (splitmix64), as the stored numbers were made."""
    weights = {}
    for name, shape in shapes.items():
        count, mask = int(np.prod(shape)), 2**64 - 1
        key = np.uint64((zlib.crc32(name.encode()) + (seed << 32)) & mask)
        with np.errstate(over="ignore"):
            z = key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        uniform = ((z >> np.uint64(56)).astype(np.float64) - 128) / 128
        if name == "context_embedding.tokens":
            values = 1.2 * uniform
        elif len(shape) > 1:
            values = uniform * (3 * shape[0] / count) ** 0.5
        else:
            values = 1 + 0.4 * uniform if name.endswith(".weight") else 0.25 * uniform
        weights[name] = torch.from_numpy(values.astype(np.float32)).view(*shape)
    return weights


@pytest.mark.parametrize("name", ["spatial", "temporal", "topology"])
@torch.no_grad()
def test_higen(name):
    said, tensors = read(name)
    weights = {key: tensor.float() for key, tensor in strip_prefix(tensors, "weights.").items()}
    component = unet_component(weights or formula_weights(said["weight_shapes"], said["weights_seed"]))
    # How wide a head is cannot be told from shapes, except by a stem of eight heads, as released.
    heads = {"head_width": said["config"]["head_dim"], "stem_heads": said["config"]["num_heads"]}
    network = HiGenUNet(dataclasses.replace(component.config, **heads))
    network.load_state_dict(component.tensors)
    for case in said["cases"]:
        x, t, y, prior, motion, appearance = (
            tensors[f"{case}.{key}"] for key in ("x", "t", "y", "spat_prior", "motion_cond", "appearance_cond")
        )
        found = network(x, t, y, prior, motion.view(len(x), -1), appearance)
        torch.testing.assert_close(found, tensors[f"{case}.out"], rtol=0, atol=TOLERANCE)


def tiny_higen():
    torch.manual_seed(0)
    config = HiGenUNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,), head_width=8, stem_heads=4
    )
    network = HiGenUNet(
        dataclasses.replace(config, context_width=24, text_width=20, resampled_tokens=5, norm_groups=8)
    ).eval()
    return network, torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 900]), torch.randn(2, 7, 20)


@torch.no_grad()
def test_cues_have_neutral_defaults_and_wrong_shapes_are_refused():
    network, x, t, text = tiny_higen()
    neutral = network(x, t, text, torch.zeros(2, 4, 8, 8), torch.zeros(2, 2), torch.ones(2, 3, 32))
    torch.testing.assert_close(network(x, t, text), neutral, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"prior has shape \(2, 4, 4, 8\), expected \(2, 4, 8, 8\)"):
        network(x, t, text, prior=torch.zeros(2, 4, 4, 8))
    with pytest.raises(ValueError, match=r"motion factors have shape \(2, 5\), expected \(2, 2\) or \(2, 3\)"):
        network(x, t, text, motion=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"similarities have shape \(2, 3, 16\), expected \(2, 3, 32\)"):
        network(x, t, text, appearance=torch.zeros(2, 3, 16))
    with pytest.raises(ValueError, match="must have width 20, found width 24"):
        network(x, t, torch.zeros(2, 7, 24))


def test_weights_get_gradients_where_inference_overwrites():
    network, x, t, text = tiny_higen()
    prior = torch.randn(2, 4, 8, 8)
    found = network(x, t, text, prior)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, text, prior), found.detach(), rtol=0, atol=1e-6)
    found.square().mean().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


@pytest.mark.parametrize(
    "layout",
    [
        {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            "layers_per_block": 1,
        },
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "layers_per_block": 2,
        },
    ],
    ids=["three levels", "two levels"],
)
@torch.no_grad()
def test_modelscope_is_the_network_of_diffusers(layout, relative_error):
    torch.manual_seed(0)
    theirs = UNet3DConditionModel(**layout, cross_attention_dim=24, attention_head_dim=8, norm_num_groups=32).eval()
    for weight in theirs.parameters():
        weight.copy_(torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3))
    component = unet_component(theirs.state_dict())
    assert component.config.head_width == 8 and component.config.num_res_blocks == layout["layers_per_block"]
    ours = component.build().eval()
    for frames in (5, 1):
        x, t, text = torch.randn(2, 4, frames, 8, 8), torch.tensor([3, 900]), torch.randn(2, 7, 24)
        # Both round in float32.
        assert relative_error(ours(x, t, text), theirs(x, t, text).sample) < 1e-5


@pytest.mark.parametrize(
    ("name", "network", "config", "parameters"),
    [
        ("unet_higen", HiGenUNet, HiGenUNetConfig(), 1_483_201_924),
        ("unet_t2v", SpaceTimeUNet, SpaceTimeUNetConfig(), 1_411_233_860),
    ],
)
def test_released_tensors(name, network, config, parameters):
    shapes = json.loads(lzma.decompress((DATA / f"{name}.keys.json.xz").read_bytes()))
    byte = torch.zeros((), dtype=torch.float8_e4m3fn)
    component = unet_component({key: byte.expand(shape) for key, shape in shapes.items()})
    assert (component.network, component.config) == (network, config)
    check_tensors(component.blank(), component.tensors, name)
    assert sum(tensor.numel() for tensor in component.tensors.values()) == parameters


def test_released_schedule():
    """Zero terminal SNR, and the grid of DDIM with its last step at the first level, in float64."""
    said = json.loads((DATA / "schedule.json").read_text())
    alphas = HIGEN_SCHEDULE.alphas_cumprod()
    torch.testing.assert_close(alphas, torch.tensor(said["alpha_bar"], dtype=torch.float64), rtol=1e-12, atol=1e-15)
    walk = said["ddim50"]
    expected = torch.tensor([*walk["alpha_bar"], walk["alpha_bar_previous"][-1]], dtype=torch.float64)
    torch.testing.assert_close(alpha_cumprod_of(ddim_sigmas(HIGEN_SCHEDULE, 50)), expected, rtol=1e-10, atol=0)
    assert HIGEN_SCHEDULE.sigmas()[-1].isinf() and HIGEN_SCHEDULE.prediction == "velocity"


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model."])
def test_files_are_recognised(prefix):
    network, *_ = tiny_higen()
    tensors = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    checkpoint = interpret("any.pth", tensors, {})
    assert (checkpoint.family, checkpoint.schedule) == ("higen", HIGEN_SCHEDULE)
    assert checkpoint.component(MODEL).network is HiGenUNet
    plain = {name: t for name, t in tensors.items() if not re.search("resampler|motion|appearance|prior", name)}
    checkpoint = interpret("any.pth", plain, {})
    assert (checkpoint.family, checkpoint.schedule) == ("modelscope", MODELSCOPE_SCHEDULE)
    with pytest.raises(CheckpointError, match="any.pth has no averaged .* choose the training weights"):
        interpret("any.pth", tensors, {}, ReadOptions(ema=True))


@pytest.fixture
def pipeline(tmp_path):
    """A folder in diffusers' layout with a small denoiser; gives the folder and the denoiser."""
    torch.manual_seed(0)
    network = UNet3DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), layers_per_block=1, cross_attention_dim=24,
        attention_head_dim=8,
    )  # fmt: skip
    folder = tmp_path / "zeroscope"
    network.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    return folder, network


def write_scheduler(folder, **settings):
    published = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(published | settings))


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "half"])
def test_a_folder_in_the_layout_of_diffusers(pipeline, form):
    folder, network = pipeline
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if form == "bin":
        torch.save(safetensors.torch.load_file(file), folder / "unet" / "diffusion_pytorch_model.bin")
        file.unlink()
    elif form == "shards":
        network.save_pretrained(folder / "unet", max_shard_size="1MB")
        file.unlink(missing_ok=True)
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    elif form == "half":
        file.rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.name, checkpoint.family, set(checkpoint.components)) == (
        "zeroscope", "modelscope", {"diffusion_model"},
    )  # fmt: skip
    expected = unet_component(network.state_dict()).tensors
    found = checkpoint.component("diffusion_model").tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({}, NoiseSchedule(0.00085, 0.012)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, HIGEN_SCHEDULE),
        ({"beta_end": 0.02, "prediction_type": "epsilon"}, NoiseSchedule(0.00085, 0.02)),
    ],
)
def test_a_folder_says_its_schedule(pipeline, settings, schedule):
    folder, _ = pipeline
    write_scheduler(folder, **settings)
    found = read_checkpoint(folder).schedule
    assert (found.prediction, found.zero_terminal_snr) == (schedule.prediction, schedule.zero_terminal_snr)
    torch.testing.assert_close(found.alphas_cumprod(), schedule.alphas_cumprod())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"beta_schedule": "cosine"}', "beta_schedule 'cosine' and prediction_type 'epsilon', expected"),
        ('{"beta_schedule": "scaled_linear", "prediction_type": "sample"}', "prediction_type 'sample'"),
        ("{", "scheduler_config.json cannot be read"),
        ("[]", "scheduler_config.json cannot be read"),
        ('{"beta_schedule": "scaled_linear", "beta_start": "low"}', "cannot be read"),
    ],
)
def test_a_schedule_that_is_not_known_is_refused(pipeline, text, message):
    folder, _ = pipeline
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_a_folder_without_a_denoiser_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="has no unet/diffusion_pytorch_model.safetensors"):
        read_checkpoint(tmp_path)
