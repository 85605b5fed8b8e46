"""AnimateDiff's motion modules and HARIVO's parts against stored numbers, and their files."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from weft.kernels.layers.embeddings import frame_positions
from weft.kernels.layers.resnet import Step
from weft.kernels.networks.harivo import (
    FrameTokens,
    FrameTokensConfig,
    MappingConfig,
    MappingNetwork,
    MotionConfig,
    MotionNetwork,
    motion_module,
)
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.checkpoint import MODEL, interpret
from weft.model_loaders.checkpoint import read as read_checkpoint
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.harivo import MOTION, released_keys, save_motion
from weft.model_loaders.keymap import check_tensors, strip_prefix

DATA = Path(__file__).resolve().parents[1] / "data" / "harivo"
VECTORS = load_file(DATA / "modules.safetensors")


@pytest.mark.parametrize("name", ["a", "b"])
def test_motion_module(name):
    """Outputs go to 30; positions are computed here and are those that were stored."""
    file = safetensors.safe_open(DATA / f"motion_module_{name}.safetensors", "pt")
    tensors = {key: file.get_tensor(key) for key in file.keys()}
    said = file.metadata()
    weights = {f"x.{key}": tensor for key, tensor in strip_prefix(tensors, "weights.").items() if ".pe" not in key}
    module = motion_module(int(said["in_channels"]), int(said["num_attention_heads"]))
    module.load_state_dict(strip_prefix(released_keys(2)(weights), "x."))
    video = tensors["input"]
    frames = video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        out = module(frames, Step(video.shape[2], frames.new_empty(0)))
    expected = tensors["output_f64"].transpose(1, 2).flatten(0, 1).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    table = next(tensor for key, tensor in tensors.items() if key.endswith(".pe"))[0]
    # Float32's exp differs by a bit from processor to processor, and with it an angle by one bit of itself.
    width = table.shape[1]
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = (torch.arange(len(table))[:, None] * rates).repeat_interleave(2, dim=1)
    assert ((frame_positions(*table.shape, table) - table).abs() <= 2**-23 * angles.clamp(min=1)).all()


def test_mapping_network():
    """Identity while its last convolution and its projection are zero, as when training begins."""
    config = MappingConfig(channels=4, kernel=(3, 3, 3), heads=2, head_width=3)
    network = MappingNetwork(config, dtype=torch.float64)
    weights = {f"mapping_network.{key}": value for key, value in strip_prefix(VECTORS, "mapping.weights.").items()}
    network.load_state_dict(strip_prefix(released_keys(2)(weights), "mapping."))
    with torch.no_grad():
        out = network(VECTORS["mapping.input"])
        torch.testing.assert_close(out, VECTORS["mapping.output"], rtol=0, atol=1e-10)
        for layer in (network.convs[1], network.project_out):
            for parameter in layer.parameters():
                parameter.zero_()
        assert torch.equal(network(out), out)


def token_generator() -> FrameTokens:
    network = FrameTokens(FrameTokensConfig(width=8, text_tokens=5, frames=3, per_frame=2), dtype=torch.float64)
    weights = {f"frame_tokens.{key}": value for key, value in strip_prefix(VECTORS, "tokens.weights.").items()}
    network.load_state_dict(strip_prefix(released_keys(2)(weights), "tokens."))
    return network


@torch.no_grad()
def test_frame_tokens():
    network, text = token_generator(), VECTORS["tokens.text"]
    torch.testing.assert_close(network(text), VECTORS["tokens.frame_tokens"], rtol=0, atol=1e-10)
    context = network.append(text.repeat_interleave(3, dim=0), 3)
    torch.testing.assert_close(context, VECTORS["tokens.context"], rtol=0, atol=1e-10)


@torch.no_grad()
def test_frame_tokens_of_other_texts():
    network, text = token_generator(), VECTORS["tokens.text"].repeat_interleave(3, dim=0)
    short = network.append(text[[0, 1, 3, 4]], 2)
    whole = network.append(text, 3)
    torch.testing.assert_close(short, whole[[0, 1, 3, 4]], rtol=0, atol=1e-12)
    # A text repeated to twice its length has its tokens twice; half a chunk has none of its own.
    twice = network.append(text.repeat(1, 2, 1), 3)
    assert twice.shape[1] == 10 + 4
    torch.testing.assert_close(twice[:, 10:], whole[:, 5:].repeat(1, 2, 1), rtol=0, atol=1e-12)
    assert torch.equal(network.append(text[:, :4], 3), text[:, :4])
    assert network.append(text.repeat(1, 2, 1)[:, :8], 3).shape[1] == 8 + 2
    # A frame's own text makes its own tokens.
    other = text.clone()
    other[1] += 1
    changed = (network.append(other, 3)[:, 5:] != whole[:, 5:]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False, False]


def manifest() -> dict[str, torch.Tensor]:
    """Names and shapes of mm_sd_v15_v2."""
    shapes = json.loads((DATA / "mm_sd_v15_v2.keys.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def without_middle(tensors, frames):
    return {
        name: tensor[:, :frames] if name.endswith(".pe") else tensor
        for name, tensor in tensors.items()
        if not name.startswith("mid_block")
    }


@pytest.mark.parametrize(
    ("version", "frames", "middle", "parameters"),
    [("v1", 24, False, 417_137_600), ("v2", 32, True, 453_209_280), ("v3", 32, False, 417_137_600)],
)
def test_released_motion_modules(version, frames, middle, parameters):
    tensors = manifest() if middle else without_middle(manifest(), frames)
    checkpoint = interpret("mm.ckpt", {f"module.{name}": tensor for name, tensor in tensors.items()}, {})
    part = checkpoint.component(MOTION)
    assert part.config == MotionConfig(middle=middle, max_frames=frames, joint_norms=version == "v1")
    check_tensors(part.blank(), part.tensors, version)
    assert sum(tensor.numel() for tensor in part.tensors.values()) == parameters
    omega = float(checkpoint.schedule.sigmas()[-1])
    assert omega == pytest.approx(25.146, abs=1e-3)
    with pytest.raises(CheckpointError, match="mm.ckpt has no diffusion model, it has: motion_modules"):
        checkpoint.component(MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {name: value for name, value in tensors.items() if "blocks.3." not in name},
            "motion modules for a UNet of 3 levels, expected the 4 of Stable Diffusion 1.5",
        ),
        (
            lambda tensors: {
                name.replace("to_q.weight", "processor.to_q_lora.up.weight"): value for name, value in tensors.items()
            },
            "is a MotionLoRA",
        ),
        (
            lambda tensors: {name: v[:, :9] if name.endswith("blocks.1.pos_encoder.pe") else v
                             for name, v in tensors.items()},
            r"position tables of \[9, 32\] frames",
        ),
    ],
)  # fmt: skip
def test_other_motion_modules_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        interpret("mm.ckpt", change(manifest()), {})


def small_network(**parts) -> MotionNetwork:
    torch.manual_seed(0)
    return MotionNetwork(MotionConfig(widths=(32, 32, 64, 64), max_frames=6, **parts))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1)])
def test_own_files_come_back_as_they_were(kernel, tmp_path):
    tokens = FrameTokensConfig(width=12, text_tokens=7, frames=6, per_frame=2)
    network = small_network(middle=True, mapping=MappingConfig(4, kernel, 8, 4), tokens=tokens)
    schedule = NoiseSchedule(0.001, 0.01)
    save_motion(tmp_path / "h.safetensors", network, schedule, fps=8)
    found = read_checkpoint(tmp_path / "h.safetensors")
    part = found.component(MOTION)
    assert part.config == network.config and found.schedule == schedule and found.metadata["fps"] == "8"
    for name, tensor in network.state_dict().items():
        assert torch.equal(part.tensors[name], tensor), name
    names = set(load_file(tmp_path / "h.safetensors"))
    assert not any("temporal" in name for name in names if not name.startswith(("down", "mid", "up")))


def test_own_files_are_named_as_released_ones(tmp_path):
    save_motion(tmp_path / "m.safetensors", small_network(middle=True), NoiseSchedule(0.00085, 0.012, spacing="even"))
    assert set(load_file(tmp_path / "m.safetensors")) == set(manifest())
    config = read_checkpoint(tmp_path / "m.safetensors").component(MOTION).config
    assert config == MotionConfig((32, 32, 64, 64), 2, True, 6)


def test_modules_stand_behind_the_blocks_of_stable_diffusion():
    network = small_network(middle=True)
    inputs = [index for index in range(12) if network.motion_module("input", index) is not None]
    assert inputs == [1, 2, 4, 5, 7, 8, 10, 11]
    assert [network.motion_module("input", index) for index in inputs] == list(network.down)
    assert [network.motion_module("output", index) for index in range(12)] == list(network.up)
    assert network.motion_module("middle", 0) is network.middle[0]
    assert small_network().motion_module("middle", 0) is None


def test_a_damaged_file_is_refused(tmp_path):
    save_motion(tmp_path / "m.safetensors", small_network(), NoiseSchedule())
    tensors = load_file(tmp_path / "m.safetensors")
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="qkv.weight has shape"):
        read_checkpoint(tmp_path / "broken.safetensors")
