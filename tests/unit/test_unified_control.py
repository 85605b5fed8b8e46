"""VersVideo's unified ControlNet: sizes, beginning, adapters, what it adds where, files, bad input."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.kernels.networks.style_adapter import StyleAdapter, StyleAdapterConfig
from weft.kernels.networks.unified_control import Adapter, UnifiedControlConfig, UnifiedControlNet
from weft.kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from weft.model_loaders.checkpoint import read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.unified_control import save_unified_control

TINY = VersVideoUNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,), heads=4, context_width=12, depth=1
)


def size(network):
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("channels", "copy", "zeros", "adapter"),
    [(128, 130_119_268, 1_839_360, 643_920), (320, 785_763_040, 11_479_680, 1_086_480)],
)
def test_sizes(channels, copy, zeros, adapter):
    with torch.device("meta"):
        network = UnifiedControlNet(UnifiedControlConfig(VersVideoUNetConfig(model_channels=channels)))
    found = size(network.zero_convs) + size(network.middle_out)
    assert found == zeros and len(network.zero_convs) == 12
    assert [size(part) for part in network.adapters.values()] == [adapter] * 4
    assert size(network) - found - 4 * adapter == copy


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return VersVideoUNet(TINY).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 4, 6), torch.tensor([10.0, 700.0]), torch.randn(2, 5, 12)


@pytest.fixture
def hints():
    return torch.rand(2, 3, 3, 32, 48, generator=torch.manual_seed(2))


def drawn(network):
    """One in which everything acts."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


@torch.no_grad()
def test_it_begins_without_effect_as_the_encoder(unet, inputs, hints):
    network = UnifiedControlNet.of(unet)
    added = network(*inputs, hints, "canny")
    assert not any(part.any() for part in added)
    assert torch.equal(unet(*inputs, control=added), unet(*inputs))
    ours = unet.state_dict()
    assert all(torch.equal(x, ours[name]) for name, x in network.state_dict().items() if name in ours)
    for conv in (*network.zero_convs, network.middle_out):
        torch.nn.init.eye_(conv.weight[:, :, 0, 0])
    skips, middles = [], []
    stages = [unet.conv_in, *unet.skeleton.down]
    hooks = [stage.register_forward_hook(lambda stage, given, out: skips.append(out)) for stage in stages]
    hooks.append(unet.skeleton.middle[-1].register_forward_hook(lambda stage, given, out: middles.append(out)))
    unet(*inputs)
    for hook in hooks:
        hook.remove()
    for found, expected in zip(network(*inputs, hints, "canny"), [*skips, *middles], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_merged_copy_of_experts_is_made():
    torch.manual_seed(0)
    unet = VersVideoUNet(dataclasses.replace(TINY, spatial_experts=3, temporal_experts=2)).eval()
    network = UnifiedControlNet.of(unet)
    assert network.config.unet == TINY
    merged = unet.merged().state_dict()
    assert all(torch.equal(x, merged[name]) for name, x in network.state_dict().items() if name in merged)


@torch.no_grad()
def test_exactly_the_adapter_of_the_condition_runs(unet, inputs, hints):
    network = drawn(UnifiedControlNet.of(unet))
    ran = []
    for name, adapter in network.adapters.items():
        adapter.register_forward_hook(lambda adapter, given, out, name=name: ran.append(name))
    found = {name: network(*inputs, hints, name) for name in network.config.conditions}
    assert ran == ["image", "canny", "hed", "depth"]
    assert (found["hed"][0] - found["depth"][0]).abs().max() > 1e-3
    assert (unet(*inputs, control=found["hed"]) - unet(*inputs)).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_added_reaches_the_decoder_alone(unet, inputs):
    """The first skip is read by the last stage; the middle's output by the first one going up."""
    seen = []
    hooks = [stage.register_forward_hook(lambda s, given, out: seen.append(given[0])) for stage in unet.skeleton.up]
    unet(*inputs)
    plain, count = seen[:], len(unet.skeleton.down)
    seen.clear()
    control = [None] * (count + 2)
    control[0], control[-1] = torch.ones(6, 32, 4, 6), torch.full((6, 64, 2, 3), 2.0)
    unet(*inputs, control=control)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen[0][:, :64], plain[0][:, :64] + 2, rtol=0, atol=1e-6)
    assert torch.equal(seen[0][:, 64:], plain[0][:, 64:])
    torch.testing.assert_close(seen[-1][:, -32:], plain[-1][:, -32:] + 1, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_adapter_can_be_added_without_touching_the_rest(unet, inputs, hints):
    network = drawn(UnifiedControlNet.of(unet))
    more = network.with_condition("sketch")
    assert more.config.conditions == ("image", "canny", "hed", "depth", "sketch")
    for found, expected in zip(more(*inputs, hints, "canny"), network(*inputs, hints, "canny"), strict=True):
        assert torch.equal(found, expected)
    blank = [more(*inputs, maps, "sketch")[0] for maps in (hints, torch.zeros_like(hints))]
    assert torch.equal(*blank)
    with pytest.raises(ValueError, match="There is an adapter for the condition 'canny' already"):
        more.with_condition("canny")


def test_gradients_reach_all_but_the_denoiser(unet, inputs, hints):
    unet.requires_grad_(False)
    network = drawn(UnifiedControlNet.of(unet).requires_grad_(True))
    unet(*inputs, control=network(*inputs, hints, "hed")).square().mean().backward()
    others = ("adapters.image", "adapters.canny", "adapters.depth")
    for name, weight in network.named_parameters():
        assert (weight.grad is None) == name.startswith(others), name
        assert weight.grad is None or weight.grad.any(), name
    assert all(weight.grad is None for weight in unet.parameters())


def test_files(unet, tmp_path):
    network = drawn(UnifiedControlNet.of(unet, ["image", "depth"]))
    path = tmp_path / "control.safetensors"
    save_unified_control(path, network, steps=3)
    tensors = load_file(path)
    for name in (
        "control.input_blocks.0.0.weight", "control.input_blocks.1.0.in_layers.2.gate", "control.zero_convs.3.bias",
        "control.middle_block_out.weight", "control.middle_block.1.temporal.proj_in.weight",
        "control.time_embed.0.weight", "adapters.depth.14.bias", "adapters.image.0.weight",
    ):  # fmt: skip
        assert name in tensors, name
    checkpoint = read(path)
    component = checkpoint.component("control_net")
    assert component.config == network.config and checkpoint.metadata["steps"] == "3"
    again = component.build().state_dict()
    assert again.keys() == network.state_dict().keys()
    assert all(torch.equal(again[name], x) for name, x in network.state_dict().items())
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="does not say in its metadata which denoiser it is for"):
        read(path)


def test_files_with_a_style_adapter(unet, tmp_path):
    torch.manual_seed(0)
    style, network = StyleAdapter(StyleAdapterConfig(10, 12, 3)), UnifiedControlNet.of(unet, ["image"])
    save_unified_control(tmp_path / "both.safetensors", network, style)
    checkpoint = read(tmp_path / "both.safetensors")
    assert checkpoint.component("control_net").config == network.config
    assert checkpoint.component("style_adapter").config == style.config
    tensors = load_file(tmp_path / "both.safetensors")
    alone = {name: x for name, x in tensors.items() if name.startswith("style_adapter.")}
    assert {name: tuple(x.shape) for name, x in alone.items()} == {
        "style_adapter.weight": (36, 10), "style_adapter.bias": (36,),
    }  # fmt: skip
    save_file(alone, tmp_path / "style.safetensors", {"text_width": "12"})
    found = read(tmp_path / "style.safetensors").component("style_adapter").build()
    assert all(torch.equal(x, style.state_dict()[name]) for name, x in found.state_dict().items())
    # An odd number of rows is no whole number of tokens.
    save_file(alone, tmp_path / "style.safetensors", {"text_width": "11"})
    with pytest.raises(CheckpointError, match=r"project\.weight has shape \(36, 10\), expected \(33, 10\)"):
        read(tmp_path / "style.safetensors")


@torch.no_grad()
def test_style_is_tokens_behind_the_text():
    style, text, image = StyleAdapter(StyleAdapterConfig(10, 12, 3)), torch.randn(2, 77, 12), torch.randn(1, 10)
    found = style.append(text, image)
    assert found.shape == (2, 80, 12) and torch.equal(found[:, :77], text)
    rows = style.project.weight @ image[0] + style.project.bias
    torch.testing.assert_close(found[1, 77:], rows.reshape(3, 12), rtol=0, atol=1e-6)
    none = style.append(text, torch.zeros(1, 10))[0, 77:]
    torch.testing.assert_close(none, style.project.bias.reshape(3, 12), rtol=0, atol=0)
    with pytest.raises(ValueError, match="The image's embedding has width 8, the style adapter expects 10"):
        style.append(text, image[:, :8])
    with pytest.raises(ValueError, match="The text has width 16, the style adapter expects 12"):
        style.append(torch.zeros(1, 77, 16), image)


def test_bad_input(unet, inputs, hints):
    network = UnifiedControlNet.of(unet)
    with pytest.raises(ValueError, match="no adapter for the condition 'pose', expected one of: image, canny, hed, de"):
        network(*inputs, hints, "pose")
    with pytest.raises(ValueError, match=r"maps have shape \(2, 3, 3, 32, 40\), expected \(2, 3, 3, 32, 48\)"):
        network(*inputs, hints[..., :40], "hed")
    assert Adapter(8)(torch.zeros(1, 3, 16, 24)).shape == (1, 8, 2, 3)
