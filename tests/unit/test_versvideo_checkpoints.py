"""VersVideo's files: with experts and merged, what they say, what is wrong with bad ones, and memory while merging."""

import ctypes
import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from weft.kernels.layers.excitation import shift_taps
from weft.kernels.layers.experts import merge_experts
from weft.kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import MODEL, TEXT_ENCODER, VAE, ReadOptions, interpret, read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.files import read_tensors
from weft.model_loaders.versvideo import LATENT, SCHEDULE, file_tensors, save_unet

TINY = VersVideoUNetConfig(model_channels=32, channel_mult=(1, 2), attention_factors=(1,), context_width=12, heads=4)
DEALT = replace(TINY, spatial_experts=3, temporal_experts=2)


def network(config=TINY):
    torch.manual_seed(0)
    return VersVideoUNet(config)


@pytest.fixture(scope="module")
def tensors():
    """A small training checkpoint by the names of files."""
    return file_tensors(network(DEALT).state_dict())


EXCITED = {
    "weight": (32, 64, 3, 3),
    "bias": (32,),
    "temporal.weight": (32, 32, 3, 1, 1),
    "temporal.bias": (32,),
    "shift.weight": (64, 1, 3),
    "ste.weight": (1, 1, 3, 3, 3),
    "ce.squeeze.weight": (4, 64, 1, 1),
    "ce.temporal.weight": (4, 4, 3),
    "ce.expand.weight": (64, 4, 1, 1),
    "me.squeeze.weight": (4, 64, 1, 1),
    "me.spatial.weight": (4, 1, 3, 3),
    "me.expand.weight": (64, 4, 1, 1),
    "gate": (32,),
    "proj.weight": (32, 64, 1, 1, 1),
}
TRANSFORMER = {
    "norm.weight": (32,),
    "proj_in.weight": (32, 32, 1, 1),
    "transformer_blocks.1.attn1.to_q.weight": (32, 32),
    "transformer_blocks.1.attn1.to_out.0.bias": (32,),
    "transformer_blocks.1.norm3.bias": (32,),
    "transformer_blocks.1.ff.net.0.proj.weight": (256, 32),
    "transformer_blocks.1.ff.net.2.bias": (32,),
    "proj_out.bias": (32,),
}


def test_names_in_files(tensors):
    """Stable Diffusion's, with what is new inside of its layers."""
    merged = {name: tuple(tensor.shape) for name, tensor in file_tensors(network().state_dict()).items()}
    place = "output_blocks.5.0.in_layers.2."
    assert {name.removeprefix(place): size for name, size in merged.items() if name.startswith(place)} == EXCITED
    text = {"transformer_blocks.0.attn2.to_k.weight": (32, 12), "transformer_blocks.0.norm2.weight": (32,)}
    over_time = {"transformer_blocks.0.attn2.to_k.weight": (32, 32)}
    for part, more in (("", text), ("temporal.", over_time)):
        expected = {f"input_blocks.1.1.{part}{name}": size for name, size in (TRANSFORMER | more).items()}
        assert expected.items() <= merged.items()
    stock = [
        "time_embed.2.bias",
        "input_blocks.0.0.weight",
        "input_blocks.3.0.op.weight",
        "middle_block.1.proj_in.bias",
    ]
    stock += ["input_blocks.4.0.skip_connection.weight", "middle_block.2.emb_layers.1.weight", "out.0.weight"]
    # Without transformers in that level the up-sampler is the entry behind the residual block.
    stock += ["output_blocks.2.1.conv.weight", "output_blocks.3.0.out_layers.0.weight", "out.2.weight"]
    assert set(stock) <= merged.keys()
    expert = "middle_block.1.transformer_blocks.0.ff.experts.2.net.0.proj.weight"
    assert (
        tensors[expert].shape == (512, 64)
        and "middle_block.1.temporal.transformer_blocks.1.ff.experts.1.net.2.bias" in tensors
    )
    attends = file_tensors(network(replace(TINY, attention_factors=(1, 2))).state_dict())
    assert "output_blocks.2.2.conv.weight" in attends


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        DEALT,
        replace(TINY, depthwise_motion=False, depth=1, heads=8),
        replace(TINY, channel_mult=(1, 1, 2), attention_factors=(2, 4), num_res_blocks=1, in_channels=5),
    ],
)
def test_what_is_written_is_read(tmp_path, config):
    path = tmp_path / "small.safetensors"
    own = network(config)
    save_unet(path, own, SCHEDULE, variant="L", num_frames=16)
    checkpoint = read(path)
    assert (checkpoint.family, checkpoint.schedule, checkpoint.latent) == ("versvideo", SCHEDULE, LATENT)
    assert (checkpoint.metadata["variant"], checkpoint.metadata["num_frames"]) == ("L", "16")
    component = checkpoint.component(MODEL)
    assert component.config == replace(config, spatial_experts=1, temporal_experts=1)
    expected = merge_experts(own.state_dict())
    assert component.tensors.keys() == expected.keys()
    assert all(torch.equal(component.tensors[name], expected[name]) for name in expected)
    built = component.build().eval()
    channels = config.in_channels
    inputs = torch.randn(1, channels, 3, 8, 8), torch.tensor([500]), torch.randn(1, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(built(*inputs), own.eval()(*inputs), rtol=0, atol=1e-5)


def test_the_paper_says_how_it_is_sampled(tensors):
    checkpoint = interpret("any", tensors, {})
    assert checkpoint.schedule == NoiseSchedule(0.00085, 0.012, prediction="velocity", eta=0.0)
    # The last noise level of Stable Diffusion's schedule.
    assert float(checkpoint.schedule.sigmas()[-1]) == pytest.approx(14.6146, abs=1e-4)
    assert checkpoint.component(MODEL).config.heads == 8
    said = {"beta_schedule": "linear_equal_spacing", "beta_start": "0.001", "beta_end": "0.02"}
    assert interpret("any", tensors, said).schedule == NoiseSchedule(
        0.001, 0.02, prediction="velocity", spacing="even", eta=0.0
    )


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "module."])
def test_with_the_other_networks_of_a_file(tensors, prefix):
    given = {prefix + name: tensor for name, tensor in tensors.items()}
    others = {
        "first_stage_model.encoder.conv_in.weight": torch.ones(2),
        "cond_stage_model.transformer.x": torch.ones(3),
    }
    checkpoint = interpret("any", given | others, {})
    assert set(checkpoint.components) == {MODEL, VAE, TEXT_ENCODER}
    assert checkpoint.component(VAE).tensors.keys() == {"encoder.conv_in.weight"}
    assert (checkpoint.component(VAE).config, checkpoint.component(TEXT_ENCODER).config) == ("stable diffusion", "clip")
    alone = interpret("any", tensors, {}).component(MODEL)
    assert all(torch.equal(alone.tensors[name], x) for name, x in checkpoint.component(MODEL).tensors.items())


def test_shifts_may_be_left_out(tensors):
    kept = {name: tensor for name, tensor in tensors.items() if ".shift." not in name}
    found = interpret("any", kept, {}).component(MODEL).tensors
    assert found.keys() == interpret("any", tensors, {}).component(MODEL).tensors.keys()
    taps = found["skeleton.up.5.residual.conv1.shift.weight"]
    assert torch.equal(taps, shift_taps(64)[:, None, :, None])


def test_a_bundle_holds_it(tmp_path):
    path = tmp_path / "bundle.safetensors"
    own = network()
    save_bundle(path, {MODEL: own}, system="versvideo", latent=LATENT, schedule=SCHEDULE, metadata={})
    checkpoint = read(path)
    assert (checkpoint.family, checkpoint.schedule) == ("versvideo", SCHEDULE)
    assert checkpoint.component(MODEL).config == TINY
    assert all(torch.equal(x, own.state_dict()[name].half()) for name, x in checkpoint.component(MODEL).tensors.items())


FF = "middle_block.1.transformer_blocks.0.ff."
OVER_TIME = "input_blocks.1.1.temporal.transformer_blocks.1.ff."


@pytest.mark.parametrize(
    ("drop", "change", "message"),
    [
        (f"{FF}experts.2.", {}, "middle_block.1.transformer_blocks.0.ff has 2, expected as many in all"),
        (f"{OVER_TIME}experts.1.", {}, "has 2 temporal experts and .* has 1, expected as many"),
        (f"{FF}experts.1.net.2.bias", {}, "ff has 3 experts, but net.2.bias of number 1 is missing"),
        (f"{FF}experts.", {f"{FF}net.2.bias": (64,)}, "spatial experts .* has 1, expected as many in all"),
        ("", {f"{FF}experts.1.net.2.bias": (65,)}, r"different shapes in net.2.bias: \[\(64,\), \(65,\)\]"),
        ("input_blocks.1.0.in_layers.2.ste", {}, r"conv1.place.weight \(1, 1, 3, 3, 3\) is missing"),
        ("", {"out.2.extra": (3,)}, r"conv_out.extra \(3,\) is unexpected"),
        ("", {"input_blocks.1.0.in_layers.2.gate": (31,)}, r"gate.weight has shape \(31, 1, 1, 1\), exp"),
        ("", {"input_blocks.1.0.in_layers.2.shift.weight": (32, 1, 5)}, r"shape \(32, 1, 5, 1\), expected"),
        ("", {"output_blocks.5.0.in_layers.2.proj.weight": (32, 64, 3, 1, 1)}, "project.weight has shape"),
        ("middle_block.0.in_layers.2.me.spatial.weight", {}, "damaged, or of another model"),
        ("middle_block.1.temporal.transformer_blocks.0.attn2", {}, "attention2.qkv.weight .* is missing"),
        ("", {f"{FF}experts.0.net.2.bias": float("nan")}, "holds NaN or infinite values in .*feed_forward.out.bias"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, tensors, drop, change, message):
    given = {name: tensor for name, tensor in tensors.items() if not (drop and name.startswith(drop))}
    for name, value in change.items():
        given[name] = torch.full((64,), value) if isinstance(value, float) else torch.zeros(value)
    torch.save(given, tmp_path / "small.ckpt")
    with pytest.raises(CheckpointError, match=f"small.ckpt.*({message})"):
        read(tmp_path / "small.ckpt")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"prediction": "eps"}, "prediction 'eps', expected one of sqrt_spacing, linear_equal_spacing and 'v'"),
        ({"beta_schedule": "cosine"}, "beta_schedule 'cosine'"),
        ({"format_version": "2"}, "format_version 2, expected 1: update the pack"),
        ({"heads": "many"}, "not those of VersVideo"),
        ({"beta_end": "high"}, "damaged, or of another model"),
    ],
)
def test_bad_descriptions(tensors, said, message):
    with pytest.raises(CheckpointError, match=f"small.*{message}"):
        interpret("small", tensors, said)


def test_heads_that_do_not_divide_a_width(tmp_path):
    save_unet(tmp_path / "small.safetensors", network(), SCHEDULE, heads=5)
    with pytest.raises(CheckpointError, match="cannot be built .32 channels cannot be divided, heads: 5"):
        read(tmp_path / "small.safetensors")


def test_there_is_no_averaged_copy(tensors):
    with pytest.raises(CheckpointError, match="any has no averaged .* choose the training weights"):
        interpret("any", tensors, {}, ReadOptions(ema=True))


class OwnMemory(TorchDispatchMode):
    """The most memory of this process during operations, without the pages of files that are read in place."""

    def __init__(self):
        super().__init__()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before counts no more
        self.before = self.most = self.now()

    @staticmethod
    def now():
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max(self.most, self.now())
        return out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory of the process")
@pytest.mark.parametrize("name", ["trained.safetensors", "trained.ckpt"])
def test_experts_are_never_in_memory_together(tmp_path, name):
    path = tmp_path / name
    config = replace(TINY, attention_factors=(2,), spatial_experts=32, temporal_experts=4)
    tensors = {key: x.half().contiguous() for key, x in file_tensors(network(config).state_dict()).items()}
    if path.suffix == ".ckpt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    experts = sum(x.nbytes for key, x in tensors.items() if ".experts." in key)
    del tensors
    with OwnMemory():  # the first reading also loads parts of torch
        save_unet(tmp_path / "small.safetensors", network(), SCHEDULE)
        read(tmp_path / "small.safetensors")
    with OwnMemory() as memory:
        checkpoint = read(path)
    kept = sum(x.nbytes for x in checkpoint.component(MODEL).tensors.values())
    assert experts > 30 << 20 > 4 * kept
    # What is kept, and the sums of one layer beside it.
    assert memory.most - memory.before < experts / 3
    with OwnMemory() as memory:
        held = {key: x.clone() for key, x in read_tensors(path)[0].items()}
    assert memory.most - memory.before > experts / 2, len(held)
