"""VersVideo's layers against stored numbers and their definition; its denoiser's sizes, beginning and work."""

import lzma
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from weft.benchmarks.peers.versvideo import MultiExcitation as Paths
from weft.benchmarks.peers.versvideo import by_frame
from weft.benchmarks.versvideo import Excitation, excitation_tensors
from weft.kernels.fused.excitation import shift, shifted_mean, window_sums
from weft.kernels.layers import chunking
from weft.kernels.layers.attention import FeedForward
from weft.kernels.layers.excitation import MultiExcitation, shift_taps
from weft.kernels.layers.experts import ExpertFeedForward, exchange_experts, mean_of, merge_experts
from weft.kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.image_unet import ImageUNetConfig, diffusers_to_comfy
from weft.model_loaders.keymap import strip_prefix
from weft.model_loaders.versvideo import start_from_image_model

DATA = Path(__file__).resolve().parents[1] / "data" / "versvideo"
# Stored numbers are float64: only the order of sums differs.
EXACT = {"rtol": 0, "atol": 1e-10}
EXCITED = ["mec_same", "mec_change", "mec_single_frame"]
DEALT = ["moe_divisible", "moe_uneven", "moe_fewer_tokens"]
TINY = VersVideoUNetConfig(model_channels=32, channel_mult=(1, 2), attention_factors=(1,), context_width=12, heads=4)


@pytest.fixture(scope="module")
def vectors():
    """Reads the stored numbers of one group."""
    stored = safetensors.torch.load(lzma.decompress((DATA / "mec_vectors.safetensors.xz").read_bytes()))
    return lambda group: strip_prefix(stored, f"{group}.")


def near(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


def layers(tensors):
    """Definition and ours, with the weights of a group."""
    weights = strip_prefix(tensors, "weights.")
    wide, narrow = weights["weight"].shape[1::-1]
    paths, ours = Paths(wide, narrow).double(), Excitation(wide, narrow).double()
    paths.load_state_dict(weights)
    ours.load_state_dict(excitation_tensors(weights))
    return paths, ours


@pytest.mark.parametrize("group", EXCITED)
@torch.no_grad()
def test_every_stored_number_of_the_paths(vectors, group):
    tensors = vectors(group)
    paths, _ = layers(tensors)
    z, hat = tensors["z"], tensors["z_hat"]
    near(paths.space_time(z), tensors["z_2d1d"])
    near(paths.shifted(z), hat)
    near(hat + hat * paths.ste(hat.mean(1, keepdim=True)).sigmoid(), tensors["z_SPE"])
    near(paths.ce(hat), tensors["z_C"])
    near(paths.me(hat), tensors["z_ME"])
    squeezed = by_frame(paths.me.squeeze, hat)
    near(squeezed, tensors["s"])
    near(F.pad(by_frame(paths.me.spatial, squeezed)[:, :, 1:] - squeezed[:, :, :-1], (0,) * 5 + (1,)), tensors["m"])
    near(paths(z), tensors["out"])


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("group", EXCITED)
def test_every_stored_number_that_one_multiplier_needs(vectors, group, gradients):
    tensors = vectors(group)
    _, ours = layers(tensors)
    z = tensors["z"]
    with torch.set_grad_enabled(gradients):
        video, taps = z.permute(0, 2, 3, 4, 1), ours.shift.weight[:, 0, :, 0]
        places = z[0, 0, 0].numel()
        near(shift(video, taps).permute(0, 4, 1, 2, 3), tensors["z_hat"])
        near(shift(video, shift_taps(z.shape[1]).double()).permute(0, 4, 1, 2, 3), tensors["z_hat_tsm"])
        near(shifted_mean(video, taps)[:, None], tensors["F"])
        windows = shift(window_sums(video) / places, taps)
        means = windows[:, :, 1, 1]
        near(means.transpose(1, 2), tensors["C1"])
        near(ours.channel.squeeze(means).transpose(1, 2), tensors["C2"])
        near(ours.channel.temporal(tensors["C2"][..., None])[..., 0], tensors["C2t"])
        near(ours.channel.expand(tensors["C2t"].transpose(1, 2)).transpose(1, 2), tensors["C3"])
        near(ours.channel(means).transpose(1, 2)[..., None, None], tensors["M_C"])
        near(
            ours.motion.expand(tensors["m_pooled"].transpose(1, 2)).sigmoid().transpose(1, 2), tensors["M_M"][..., 0, 0]
        )
        near(ours.motion(windows).transpose(1, 2)[..., None, None], tensors["M_M"])
        near(ours.place(shifted_mean(video, taps)[:, None]).sigmoid(), tensors["M_S"])
        frames = ours.space_time(z.transpose(1, 2).flatten(0, 1), z.shape[2])
        near(frames.unflatten(2, z.shape[3:]).permute(0, 4, 1, 2, 3), tensors["z_2d1d"])
        near(ours(z), tensors["out"])


@pytest.mark.parametrize("group", EXCITED)
@torch.no_grad()
def test_stored_sums_and_beginning(vectors, group):
    tensors = vectors(group)
    _, ours = layers(tensors)
    if "sum_literal" in tensors:
        ours.gate.weight.fill_(1.0)
        near(ours(tensors["z"]), tensors["sum_literal"])
    ours.start_as_image_layer()
    near(ours(tensors["z"]), tensors["out_at_initialisation"])
    assert torch.equal(ours.shift.weight[:, 0, :, 0], shift_taps(tensors["z"].shape[1]).double())


@pytest.mark.parametrize(
    ("wide", "narrow", "shape", "depthwise"),
    [
        (32, 32, (2, 5, 6, 7), True),
        (48, 32, (2, 4, 5, 3), True),
        (32, 48, (1, 3, 1, 4), True),
        (32, 32, (1, 2, 3, 1), False),
        (16, 16, (3, 1, 1, 1), True),
    ],
)
def test_one_multiplier_is_the_sum_of_paths(monkeypatch, wide, narrow, shape, depthwise):
    """Values and all gradients; without gradients also when frames are taken one or two at a time."""
    torch.manual_seed(0)
    paths = Paths(wide, narrow, depthwise).double()
    for weight in paths.parameters():
        weight.data = torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 1.0)
    ours = MultiExcitation(wide, narrow, depthwise_motion=depthwise).double()
    ours.load_state_dict(excitation_tensors(paths.state_dict()))
    videos, frames, height, width = shape
    z = torch.randn(videos, wide, frames, height, width, dtype=torch.float64, requires_grad=True)
    given = z.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    found, expected = ours(given, frames), paths(z).transpose(1, 2).flatten(0, 1)
    near(found, expected)
    direction = torch.randn_like(expected)
    theirs = dict(zip(dict(paths.named_parameters()), torch.autograd.grad(
        expected, [*paths.parameters()], direction, retain_graph=True), strict=True))  # fmt: skip
    mine = torch.autograd.grad(found, [*ours.parameters()], direction, retain_graph=True)
    theirs = excitation_tensors(theirs)
    for name, gradient in zip(dict(ours.named_parameters()), mine, strict=True):
        near(gradient, theirs[name])
    near(*(torch.autograd.grad(out, z, direction, retain_graph=True)[0] for out in (found, expected)))
    for rows in (1, 2, 99):
        monkeypatch.setitem(chunking._BUDGET_BYTES, "cpu", rows * 2 * given[0].numel() * videos * 8)
        with torch.no_grad():
            near(ours(given, frames), expected)


def test_half_precision_sums_in_single():
    """Sums of 64 x 64 places would lose digits, or leave the range, in the precision of the input."""
    torch.manual_seed(0)
    ours = MultiExcitation(32, 32)
    ours.gate.weight.data.fill_(1.0)
    z = 3 + torch.randn(2, 32, 64, 64)
    with torch.no_grad():
        exact = ours(z.bfloat16().float(), 2)
        found = ours.bfloat16()(z.bfloat16(), 2)
    # Weights and results are rounded to 8 bits.
    assert (found.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_channels_that_cannot_be_squeezed():
    with pytest.raises(ValueError, match="24 channels cannot be squeezed by 16"):
        MultiExcitation(24, 32)


def expert_layer(stacked):
    """A layer of experts from stored weights, (N, ...) each."""
    names = {"net.0.proj": "inner", "net.2": "out"}
    count, channels = stacked["net.2.bias"].shape
    network = ExpertFeedForward(channels, count).double()
    for index, expert in enumerate(network.experts):
        expert.load_state_dict(
            {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": x[index] for key, x in stacked.items()}
        )
    return network


@pytest.mark.parametrize("group", DEALT)
@torch.no_grad()
def test_stored_numbers_of_experts(vectors, group):
    tensors = vectors(group)
    stacked = strip_prefix(tensors, "experts.")
    network = expert_layer(stacked)
    seen = []
    for expert in network.experts:
        expert.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    near(network(tensors["x"], tensors["perm"]), tensors["y"])
    near(torch.cat(seen, 1), tensors["x_shuffled"])
    assert [part.shape[1] for part in seen] == [size for size in tensors["group_sizes"].tolist() if size]
    near(network.eval()(tensors["x"]), tensors["y_merged"])
    for name, ours in (("net.0.proj", "inner"), ("net.2", "out")):
        for part in ("weight", "bias"):
            near(network.merged()[f"{ours}.{part}"], tensors[f"merged.{name}.{part}"])
    for rate, steps, stored in ((0.001, 1, "1e-3"), (0.25, 1, "0.25"), (0.25, 3, "0.25_three_steps")):
        changed = expert_layer(stacked)
        for _ in range(steps):
            changed.exchange(rate)
        expected = expert_layer(strip_prefix(tensors, f"exchange_{stored}."))
        for found, wanted in zip(changed.parameters(), expected.parameters(), strict=True):
            near(found, wanted)


def test_tokens_are_dealt_anew_and_every_expert_learns():
    torch.manual_seed(0)
    network, x = ExpertFeedForward(8, 4), torch.randn(2, 8, 3, 8)
    first, second = network(x), network(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())
    network.eval()
    assert torch.equal(network(x), network(x))


def test_exchange_of_a_network_keeps_kinds_apart():
    torch.manual_seed(0)
    network = VersVideoUNet(VersVideoUNetConfig(**{**vars(TINY), "spatial_experts": 3, "temporal_experts": 2}))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    exchange_experts(network, 0.25)
    after = network.state_dict()
    merged = merge_experts(before), merge_experts(after)
    # The mean stays, up to rounding in float32; deviations shrink by 1 - 0.25 * N / (N - 1), other weights stay.
    for name in merged[0]:
        torch.testing.assert_close(merged[1][name], merged[0][name], rtol=0, atol=1e-6)
    for name in before:
        if ".experts." in name:
            mean = merged[0][name[: name.index(".experts.")] + name[name.index(".experts.") + 10 :]]
            kept = 1 - 0.25 * (3 / 2 if ".spatial." in name else 2)
            torch.testing.assert_close(after[name] - mean, kept * (before[name] - mean), rtol=0, atol=1e-6)
        else:
            assert torch.equal(after[name], before[name])


def test_means_are_taken_in_single_precision():
    parts = [torch.full((2,), 2049.0 + index % 2, dtype=torch.bfloat16) for index in range(4)]
    exact = torch.stack([part.float() for part in parts]).mean(0)
    assert torch.equal(mean_of(parts), exact.bfloat16())
    halves = [torch.full((2,), 60000.0, dtype=torch.float16)] * 32
    assert torch.equal(mean_of(halves), halves[0])
    with pytest.raises(ValueError, match="no tensor"):
        mean_of([])


@torch.no_grad()
def test_a_network_in_use_is_the_network_of_merged_experts():
    torch.manual_seed(0)
    dealt = VersVideoUNet(VersVideoUNetConfig(**{**vars(TINY), "spatial_experts": 3, "temporal_experts": 2})).eval()
    merged = VersVideoUNet(TINY).eval()
    merged.load_state_dict(merge_experts(dealt.state_dict()))
    inputs = torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = merged(*inputs)
    torch.testing.assert_close(dealt(*inputs), expected, rtol=0, atol=1e-5)
    assert (dealt.train()(*inputs) - expected).abs().max() > 1e-4


PARTS = {
    "2D": ("", 185_672_964, 1_101_929_604),
    "convolutions over time": (r"conv\d\.temporal", 21_348_096, 133_365_120),
    "excitations": (r"conv\d\.(shift|place|channel|motion|gate|project)", 6_989_316, 43_349_748),
    "projections": (r"conv\d\.project", 3_719_168, 23_244_800),
    "transformers over time": (r"attention\.temporal", 83_453_184, 520_871_040),
}


@pytest.mark.parametrize(("width", "column", "total"), [(128, 1, 297_463_560), (320, 2, 1_799_515_512)])
def test_sizes(width, column, total):
    with torch.device("meta"):
        network = VersVideoUNet(VersVideoUNetConfig(model_channels=width))
    sizes = {name: weight.numel() for name, weight in network.named_parameters()}
    assert sum(sizes.values()) == total
    counted = {
        part: sum(size for name, size in sizes.items() if rule[0] and re.search(rule[0], name))
        for part, rule in PARTS.items()
    }
    counted["2D"] = (
        total - counted["convolutions over time"] - counted["excitations"] - counted["transformers over time"]
    )
    assert counted == {part: rule[column] for part, rule in PARTS.items()}
    if width == 320:
        first = network.skeleton.down[0].residual.conv1
        assert sum(weight.numel() for weight in first.parameters()) == 1_257_727


def test_size_with_experts():
    with torch.device("meta"):
        network = VersVideoUNet(VersVideoUNetConfig(model_channels=128, spatial_experts=32, temporal_experts=4))
    added = sum(weight.numel() for weight in network.parameters()) - 297_463_560
    # 31 further experts in frames and 3 over time, of 12 d^2 + 9 d numbers each.
    assert round(added / 1e6) == 1478 + 143


class Values(TorchDispatchMode):
    """Counts the values that operations write."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.count += out.numel()
        return out


@torch.no_grad()
def work(network, size):
    frames, height, width = size
    with torch.device("meta"):
        inputs = torch.empty(1, 4, frames, height, width), torch.empty(1), torch.empty(1, 77, 768)
    with FlopCounterMode(display=False) as layers, Values() as values:
        assert network(*inputs).shape == (1, 4, *size)
    return layers.get_total_flops() + values.count


def test_excitations_and_merged_experts_cost_little(monkeypatch):
    """Beside the same network with 2D+1D convolutions alone; merged experts are its feed-forward layers."""
    with torch.device("meta"):
        network = VersVideoUNet(VersVideoUNetConfig(model_channels=128))
    assert not any(isinstance(module, ExpertFeedForward) for module in network.modules())
    whole = work(network, (16, 32, 32))

    def space_time(layer, z, frames):
        return layer.space_time(z, frames).reshape(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)

    monkeypatch.setattr(MultiExcitation, "forward", space_time)
    baseline = work(network, (16, 32, 32))
    assert 0.005 < whole / baseline - 1 < 0.15


def image_model():
    """An image UNet of the tiny size, with drawn weights, in float64."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=32,
    ).double().eval()  # fmt: skip
    for weight in network.parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.1 * noise if weight.ndim == 1 else noise / weight[0].numel() ** 0.5
    sizes = ImageUNetConfig(model_channels=32, channel_mult=(1, 2), attention_factors=(1,), context_width=12, heads=4)
    return network, diffusers_to_comfy(sizes)(network.state_dict())


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_it_begins_as_the_image_model(frames, experts):
    """Whatever the frames, in training too: experts begin alike."""
    image, tensors = image_model()
    network = VersVideoUNet(VersVideoUNetConfig(**{**vars(TINY), "spatial_experts": experts, "temporal_experts": 2}))
    start_from_image_model(network.double(), tensors, "image model")
    x, timesteps, text = torch.randn(2, 4, frames, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = [image(frame, timesteps, text.double()).sample for frame in x.double().unbind(2)]
    found = network(x.double(), timesteps, text.double())
    # Only sinusoids of time are float32 in both.
    torch.testing.assert_close(found, torch.stack(expected, 2), rtol=0, atol=1e-5 * float(expected[0].std()))
    assert network.skeleton.down[0].residual.conv1.channel.expand.weight.abs().sum() > 0


def test_another_image_model_is_refused():
    _, tensors = image_model()
    network = VersVideoUNet(TINY)
    with pytest.raises(CheckpointError, match="sd.safetensors does not fit VersVideoUNet: time_embed.* is missing"):
        start_from_image_model(network, {k: x for k, x in tensors.items() if "time_embed" not in k}, "sd.safetensors")
    wider = VersVideoUNet(VersVideoUNetConfig(**{**vars(TINY), "context_width": 16}))
    with pytest.raises(CheckpointError, match=r"key_value.weight has shape \(64, 12\), expected \(64, 16\)"):
        start_from_image_model(wider, tensors, "sd.safetensors")


@torch.no_grad()
def test_frames_are_connected_after_the_beginning():
    """With gates and outputs over time open, a change of the last frame reaches the first."""
    torch.manual_seed(0)
    network = VersVideoUNet(TINY).eval()
    x, timesteps, text = torch.randn(1, 4, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 12)
    changed = x.clone()
    changed[:, :, 3] += 1.0
    moved = (network(changed, timesteps, text) - network(x, timesteps, text)).abs().amax((0, 1, 3, 4))
    assert moved.min() > 1e-4
    network.start_as_image_model()
    moved = (network(changed, timesteps, text) - network(x, timesteps, text)).abs().amax((0, 1, 3, 4))
    assert (moved > 1e-4).tolist() == [False, False, False, True]


def test_bad_input():
    network = VersVideoUNet(TINY)
    x, timesteps = torch.randn(1, 4, 2, 8, 8), torch.tensor([3])
    for context, found in ((None, "none"), (torch.randn(1, 5, 16), "width 16")):
        with pytest.raises(ValueError, match=f"must have width 12, found {found}"):
            network(x, timesteps, context)
    with pytest.raises(ValueError, match="32 channels cannot be divided, heads: 5"):
        VersVideoUNet(VersVideoUNetConfig(**{**vars(TINY), "heads": 5}))


def test_merging_names_what_is_wrong():
    good = {f"a.ff.experts.{index}.out.weight": torch.full((2,), float(index)) for index in range(3)}
    assert merge_experts({**good, "b": torch.ones(1)})["a.ff.out.weight"].tolist() == [1.0, 1.0]
    missing = {name: x for name, x in good.items() if ".1." not in name}
    with pytest.raises(ValueError, match="a.ff has 3 experts, but out.weight of number 1 is missing"):
        merge_experts(missing)
    with pytest.raises(ValueError, match="a.ff has experts of different shapes in out.weight"):
        merge_experts({**good, "a.ff.experts.2.out.weight": torch.ones(3)})


def test_one_expert_is_a_plain_layer():
    network = VersVideoUNet(TINY)
    assert isinstance(network.skeleton.down[0].attention.temporal.block.blocks[1].feed_forward, FeedForward)
    alone = ExpertFeedForward(8, 1)
    before = [weight.clone() for weight in alone.parameters()]
    alone.exchange(0.5)
    assert all(torch.equal(*pair) for pair in zip(alone.parameters(), before, strict=True))
