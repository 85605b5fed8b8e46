"""Show-1's files: which stage they are, in every form they are kept in, and what is wrong with bad ones."""

import dataclasses
import json
import lzma
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DPMSolverMultistepScheduler

from weft.kernels.networks.higen import SpaceTimeUNet
from weft.kernels.networks.show1 import PixelUNet, PixelUNetConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.checkpoint import MODEL, TEXT_ENCODER, LatentSpec, ReadOptions, interpret, read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.show1 import SCHEDULE, SCHEDULES, unet_component

DATA = Path(__file__).resolve().parents[1] / "data" / "show1"
NAMES = {
    "base": "base", "interpolation": "interpolation", "sr1": "sr1", "sr1_first_frame": "first frame",
}  # fmt: skip
T5 = {
    "shared.weight": torch.ones(9, 8),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": torch.ones(8, 16),
    "encoder.final_layer_norm.weight": torch.ones(8),
}


def manifest(name):
    """Names and shapes of a released file as tensors of one byte each."""
    shapes = json.loads(lzma.decompress((DATA / f"{name}.keys.json.xz").read_bytes()))
    byte = torch.zeros((), dtype=torch.float8_e4m3fn)
    return {key: byte.expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model."])
@pytest.mark.parametrize("name", NAMES)
def test_which_stage_a_file_is(name, prefix):
    tensors = {prefix + key: tensor for key, tensor in manifest(name).items()}
    checkpoint = interpret("any.bin", tensors, {})
    assert checkpoint.family == "show1"
    assert checkpoint.component(MODEL).network is PixelUNet
    assert checkpoint.component(MODEL).config.stage == NAMES[name]
    assert checkpoint.schedule == SCHEDULES[NAMES[name]]
    assert checkpoint.schedule.prediction == ("velocity" if name == "sr1" else "noise")
    assert (checkpoint.latent.channels, checkpoint.latent.spatial, checkpoint.latent.scale) == (3, 1, 1.0)


def test_the_latent_stage_is_told_from_modelscope_by_its_settings_alone():
    """Their tensors have the same names and shapes, and with the released heads they are the same network."""
    tensors = manifest("sr2")
    alone = interpret("zeroscope.bin", tensors, {})
    settings = {"transfromer_in_opt": True, "attention_head_dim": [5, 10, 20, 20], "norm_num_groups": 32}
    said = interpret("show-1-sr2", tensors, {"unet": json.dumps(settings)})
    assert (alone.family, said.family) == ("modelscope", "show1")
    for checkpoint in (alone, said):
        model = checkpoint.component(MODEL)
        assert model.network is SpaceTimeUNet and checkpoint.latent == LatentSpec(4, 8, 1, 0.18215, 0.0)
        heads = [model.config.heads_in(level, width) for level, width in enumerate((320, 640, 1280, 1280))]
        assert heads == [5, 10, 20, 20]
        assert (model.config.norm_groups, model.config.clip_groups or 32) == (32, 32)


def test_released_schedule():
    """DeepFloyd's cosine table, which the release keeps in diffusers' scheduler."""
    theirs = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    ours = SCHEDULE.alphas_cumprod()
    # Theirs is a product of a thousand numbers in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    found = [float(ours[step]) for step in (0, 150, 250, 799, 995)]
    assert found == pytest.approx([0.99995869, 0.9400, 0.845890, 0.09405, 3.886e-5], rel=2e-4)
    # The logarithm of the signal-to-noise ratio ends the released walk at timestep 995.
    assert int((-SCHEDULE.sigmas().log() >= -5.1).sum()) == 996


@pytest.fixture(scope="module")
def network():
    """The keyframe network of the stored numbers: settings and weights in half precision, by released names."""
    tensors = safetensors.torch.load(lzma.decompress((DATA / "base.safetensors.xz").read_bytes()))
    weights = {key.removeprefix("weights."): x for key, x in tensors.items() if key.startswith("weights.")}
    return json.loads((DATA / "base.json").read_text())["unet_config"], weights


def save_whole(folder, weights):
    safetensors.torch.save_file(weights, folder / "diffusion_pytorch_model.safetensors")


def save_half(folder, weights):
    safetensors.torch.save_file(weights, folder / "diffusion_pytorch_model.fp16.safetensors")


def save_pickled(folder, weights):
    torch.save(weights, folder / "diffusion_pytorch_model.bin")


def save_shards(folder, weights, form="diffusion_pytorch_model-{}.safetensors"):
    names = list(weights)
    for number, part in enumerate((names[:100], names[100:]), 1):
        kept = {name: weights[name] for name in part}
        path = folder / form.format(f"{number:05}-of-00002")
        if path.suffix == ".bin":
            torch.save(kept, path)
        else:
            safetensors.torch.save_file(kept, path)


def save_half_shards(folder, weights):
    save_shards(folder, weights, "diffusion_pytorch_model.fp16-{}.safetensors")


def save_half_shards_of_new_libraries(folder, weights):
    save_shards(folder, weights, "diffusion_pytorch_model-{}.fp16.safetensors")


def save_pickled_shards(folder, weights):
    save_shards(folder, weights, "diffusion_pytorch_model-{}.bin")


@pytest.fixture
def pipeline(tmp_path, network):
    """Makes a folder as released; the text encoder has two pickled shards, one of its matrices in float32."""

    def make(save=save_pickled, **settings):
        config, weights = network
        folder = tmp_path / "show-1-base"
        for part in ("unet", "scheduler", "text_encoder"):
            (folder / part).mkdir(parents=True)
        save(folder / "unet", weights)
        (folder / "unet" / "config.json").write_text(json.dumps({**config, **settings}))
        solver = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(solver))
        for number, name in enumerate(T5, 1):
            tensor = T5[name] if name.endswith("wo.weight") else T5[name].half()
            torch.save({name: tensor}, folder / "text_encoder" / f"pytorch_model-{number:05}-of-00003.bin")
        return folder

    return make


SAVES = [
    *(save_whole, save_half, save_pickled, save_shards, save_half_shards),
    *(save_half_shards_of_new_libraries, save_pickled_shards),
]


@pytest.mark.parametrize("save", SAVES)
def test_a_folder_as_released(pipeline, network, save):
    folder = pipeline(save)
    checkpoint = read(folder)
    assert (checkpoint.name, checkpoint.family) == ("show-1-base", "show1")
    assert set(checkpoint.components) == {MODEL, TEXT_ENCODER}
    settings, weights = network
    expected = unet_component(weights, settings)
    found = checkpoint.component(MODEL)
    assert found.config == expected.config
    # Numbers that no shape tells.
    assert (found.config.head_width, found.config.temporal_heads, found.config.pooling_heads) == (8, 8, 4)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    assert checkpoint.schedule == SCHEDULE
    text = checkpoint.component(TEXT_ENCODER)
    assert (text.network, text.config) == (None, "t5 xxl")
    kinds = {name: tensor.dtype for name, tensor in text.tensors.items()}
    assert kinds == {name: torch.float32 if name.endswith("wo.weight") else torch.float16 for name in T5}


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_file_alone_is_read_with_the_heads_of_the_release(tmp_path, network, suffix):
    """The small network has 64 channels where heads are counted by 64."""
    path = tmp_path / f"keyframes.{suffix}"
    torch.manual_seed(0)
    config = PixelUNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_factors=(2,), embedding_width=32,
        text_width=64, context_width=32, head_width=64, temporal_heads=64, pooling_heads=64,
    )  # fmt: skip
    own = PixelUNet(config).half().state_dict()
    if suffix == "bin":
        torch.save(own, path)
    else:
        safetensors.torch.save_file(own, path)
    checkpoint = read(path)
    assert checkpoint.component(MODEL).config == config
    assert all(torch.equal(checkpoint.component(MODEL).tensors[name], own[name]) for name in own)
    with pytest.raises(CheckpointError, match="has no averaged .* choose the training weights"):
        read(path, ReadOptions(ema=True))


def test_what_is_not_asked_for_is_not_read(pipeline):
    """The text encoder is by far the largest part of the released folders."""
    folder = pipeline()
    for file in (folder / "text_encoder").iterdir():
        file.write_bytes(b"damaged")
    assert set(read(folder, roles=[MODEL]).components) == {MODEL}
    with pytest.raises(CheckpointError, match="pytorch_model-00001-of-00003.bin is a text or web page"):
        read(folder)


def test_settings_of_super_resolution_are_read():
    tensors = manifest("sr1")
    said = {"resnet_skip_time_act": True, "time_embedding_act_fn": "gelu", "resnet_out_scale_factor": 1.5}
    config = unet_component(tensors, {**said, "norm_num_groups": 16, "addition_embed_type_num_heads": 32}).config
    assert (config.residual_divisor, config.norm_groups, config.pooling_heads) == (1.5, 16, 32)
    assert unet_component(tensors).config.residual_divisor == 1.4142271248762552
    assert unet_component(manifest("base")).config.residual_divisor == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act_fn": "silu"}, "act_fn is 'silu', expected 'gelu'"),
        ({"cross_attention_norm": None}, "cross_attention_norm is None, expected 'group_norm'"),
        ({"attention_head_dim": [64, 32]}, r"attention_head_dim is \[64, 32\], expected a number"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0, expected a number"),
        ({"resnet_skip_time_act": True}, "must be activated once"),
        ({"resnet_out_scale_factor": 2.0, "mid_block_scale_factor": 1.0}, "mid_block_scale_factor is not"),
        (
            {"attention_head_dim": 24},
            r"\(attention_head_dim is 24, expected a divisor of 32, the width of a level with attention\)",
        ),
        (
            {"addition_embed_type_num_heads": 7},
            "addition_embed_type_num_heads is 7, expected a divisor of 48, the width of the text",
        ),
    ],
)
def test_settings_of_other_networks_are_refused(pipeline, settings, message):
    with pytest.raises(CheckpointError, match=f"show-1-base.*{message}"):
        read(pipeline(**settings))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json cannot be read"), ("[1]", r"config.json holds \[1\], expected an object")]
)
def test_settings_that_cannot_be_read(pipeline, text, message):
    folder = pipeline()
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"show-1-base: unet/{message}"):
        read(folder)


def test_heads_of_the_latent_stage_that_do_not_fit():
    for heads in ([5, 10], [5, 10, 20, "20"], 0):
        settings = json.dumps({"transfromer_in_opt": True, "attention_head_dim": heads})
        with pytest.raises(CheckpointError, match="attention_head_dim is .*expected 4 numbers"):
            interpret("show-1-sr2", manifest("sr2"), {"unet": settings})
    settings = json.dumps({"transfromer_in_opt": True, "attention_head_dim": [5, 10, 20, 48]})
    said = (
        r"^show-1-sr2: .*config.json .*\(attention_head_dim is 48, expected a divisor of 1280, the width of level 4\)"
    )
    with pytest.raises(CheckpointError, match=said):
        interpret("show-1-sr2", manifest("sr2"), {"unet": settings})


def test_a_missing_shard_is_named(pipeline):
    folder = pipeline(save_shards)
    (folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet has 1 of 2 shards .*-00002-of-00002.safetensors\): download"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sr1", {r"class_embedding\.": None}, "6 input channels, layers over time and no noise level"),
        ("base", {r"temp_": None}, "3 input channels, no layers over time and no noise level"),
        ("sr1_first_frame", {r"^conv_in\.weight": (160, 3, 3, 3)}, "3 input channels, no layers over time and a noise"),
        ("base", {r"^conv_in\.weight": (320, 9, 3, 3)}, "9 input channels, layers over time"),
    ],
)
def test_networks_that_are_no_stage_are_named(name, change, message):
    (pattern, shape), *_ = change.items()
    tensors = {}
    for key, tensor in manifest(name).items():
        if not re.search(pattern, key):
            tensors[key] = tensor
        elif shape is not None:
            tensors[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=f"any.bin is a pixel network with {message}.*choose one of these files"):
        interpret("any.bin", tensors, {})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv_in.weight", None, "damaged, or of another model"),
        ("mid_block.resnets.0.conv2.weight", None, "damaged, or of another model"),
        ("encoder_hid_proj.weight", None, "damaged, or of another model"),
        ("down_blocks.1.attentions.0.norm_cross.bias", None, r"joint.text_norm.bias \(32,\) is missing"),
        ("up_blocks.1.temp_convs.1.conv3.3.weight", None, r"convs.2.weight \(64, 64, 3, 1\) is missing"),
        ("mid_block.temp_attentions.0.transformer_blocks.0.attn2.to_k.weight", None, r"has shape \(64, 32\), expected"),
        ("up_blocks.0.upsamplers.0.conv1.weight", (32, 32, 1, 1), r"upsample.conv1.weight has shape \(32, 32, 1, 1\)"),
        ("down_blocks.1.attentions.0.add_v_proj.bias", (16,), r"text_key_value.bias has shape \(48,\), expected"),
        ("add_embedding.pool.positional_embedding", (2, 48), r"place.weight has shape \(2, 48\), expected \(1, 48\)"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", (64, 32), r"time.weight has shape \(64, 32\), expected"),
        ("mid_block.attentions.0.unknown.weight", (2,), r"joint.unknown.weight \(2,\) is unexpected"),
    ],
)
def test_bad_files(tmp_path, network, name, shape, message):
    _, weights = network
    kept = {key: tensor for key, tensor in weights.items() if key != name}
    if shape is not None:
        kept[name] = torch.zeros(shape)
    # Heads as released do not fit so small a network: widths are told first.
    folder = tmp_path / "small"
    (folder / "unet").mkdir(parents=True)
    torch.save(kept, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / "config.json").write_text(json.dumps(network[0]))
    with pytest.raises(CheckpointError, match=f"small.*{message}"):
        read(folder)


def test_a_schedule_of_a_folder_counts(pipeline):
    folder = pipeline()
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    assert read(folder).schedule == NoiseSchedule(0.00085, 0.012, eta=0.0)
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    assert read(folder).schedule == dataclasses.replace(SCHEDULE, prediction="velocity")
