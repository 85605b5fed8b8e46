"""The denoisers' ways to compute give equal results; and a transformer block written out as LVDM composes it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from weft.kernels.fused import group_norm
from weft.kernels.layers import chunking
from weft.kernels.layers.resnet import Step
from weft.kernels.networks.lvdm import (
    LatentVideoUNet,
    LatentVideoUNetConfig,
    SpaceTimeTransformer,
    TextToVideoUNet,
    TextToVideoUNetConfig,
)
from weft.model_loaders.keymap import strip_prefix
from weft.model_loaders.lvdm import UNET_KEYS

# Of the output's standard deviation: the same products in another order round differently.
TOLERANCE = 3e-5
VIDEO = LatentVideoUNetConfig(
    in_channels=5,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_factors=(2, 4),
    noise_levels=9,
)
TEXT = TextToVideoUNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_factors=(1, 2),
    context_width=24,
    temporal_length=3,
)
KINDS = {"video": (LatentVideoUNet, VIDEO), "text": (TextToVideoUNet, TEXT)}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=KINDS)
def network(request):
    """Either denoiser."""
    torch.manual_seed(0)
    kind, config = KINDS[request.param]
    return kind(config)


def inputs(network, size=(5, 8, 12), batch=2):
    """Arguments of a call: video, timesteps, text."""
    return noise(batch, network.config.in_channels, *size), torch.tensor([3, 981])[:batch], noise(batch, 7, 24, seed=1)


def test_with_gradients_equals_without(network, relative_error):
    given = inputs(network)
    before = [tensor.clone() for tensor in given]
    recorded = network(*given)
    with torch.no_grad():
        found = network(*given)
    assert relative_error(found, recorded.detach()) < TOLERANCE
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


def test_gradients_reach_every_weight(network):
    x, times, context = inputs(network)
    options = {"noise_level": torch.tensor([0, 8])} if isinstance(network, LatentVideoUNet) else {}
    network(x, times, context, **options).square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("budget", [1, 40_000])
@torch.no_grad()
def test_chunks_equal_whole(monkeypatch, network, relative_error, budget):
    given = inputs(network)
    monkeypatch.setattr(chunking, "_BUDGET_BYTES", {"cpu": 1 << 40})
    whole = network(*given)
    monkeypatch.setattr(chunking, "_BUDGET_BYTES", {"cpu": budget})
    assert relative_error(network(*given), whole) < TOLERANCE


@torch.no_grad()
def test_fast_normalisation_equals_plain(monkeypatch, network, relative_error):
    given = inputs(network)
    plain = network(*given)
    monkeypatch.setattr(group_norm, "_SMALL", 0)
    assert relative_error(network(*given), plain) < TOLERANCE


@torch.no_grad()
def test_videos_of_a_batch_are_independent(network, relative_error):
    x, times, context = inputs(network)
    alone = [network(x[i : i + 1], times[i : i + 1], context[i : i + 1]) for i in range(2)]
    assert relative_error(torch.cat(alone), network(x, times, context)) < TOLERANCE


@pytest.mark.parametrize("size", [(5, 7, 9), (1, 8, 8), (2, 1, 3), (9, 5, 6)])
@torch.no_grad()
def test_any_latent_size(network, relative_error, size):
    """Odd heights and widths come back as they were; one latent, and more than the position tables reach, work."""
    x, times, context = inputs(network, size)
    out = network(x, times, context)
    assert out.shape == (2, network.config.out_channels, *size)
    assert out.isfinite().all() and out.std() > 0.01


@torch.no_grad()
def test_frames_are_seen_in_order(network, relative_error):
    """The networks know time: a reversed video is not denoised to the reversed result."""
    x, times, context = inputs(network)
    reverse = network(x.flip(2), times, context).flip(2)
    assert relative_error(reverse, network(x, times, context)) > 0.01


@torch.no_grad()
def test_bfloat16(network, relative_error):
    given = inputs(network)
    expected = network(*given)
    x, times, context = given
    found = network.bfloat16()(x.bfloat16(), times, context.bfloat16())
    assert found.dtype == torch.bfloat16
    # 2^-8 relative per operation, over some forty layers.
    assert relative_error(found, expected) < 0.15


class TestText:
    @torch.no_grad()
    def test_network_without_text_ignores_it(self):
        torch.manual_seed(0)
        network = LatentVideoUNet(VIDEO)
        x, times, context = inputs(network)
        assert torch.equal(network(x, times, context), network(x, times))

    @torch.no_grad()
    def test_text_is_seen(self, relative_error):
        torch.manual_seed(0)
        network = TextToVideoUNet(TEXT)
        x, times, context = inputs(network)
        assert relative_error(network(x, times, -context), network(x, times, context)) > 0.001

    @pytest.mark.parametrize(("context", "found"), [(None, "found none"), (torch.zeros(2, 7, 25), "found width 25")])
    def test_wrong_text_is_refused(self, context, found):
        network = TextToVideoUNet(TEXT)
        x, times, _ = inputs(network)
        with pytest.raises(ValueError, match=f"must have width 24, {found}: use this model's CLIP"):
            network(x, times, context)

    @torch.no_grad()
    def test_noise_level_is_added_to_the_time(self, relative_error):
        torch.manual_seed(0)
        network = LatentVideoUNet(VIDEO)
        x, times, _ = inputs(network)
        without = network(x, times)
        network.noise_level.weight[4].zero_()
        assert torch.equal(network(x, times, noise_level=torch.tensor([4, 4])), without)
        assert relative_error(network(x, times, noise_level=torch.tensor([5, 5])), without) > 0.001


def transformer_as_published(w, x, context, heads, length):
    """LVDM's transformer on (B, C, T, H, W), released names, written in the order of the published table."""
    videos, channels, frames, height, width = x.shape
    d = channels // heads

    def norm(name, tokens):
        return F.layer_norm(tokens, (channels,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def attend(name, tokens, others, positions=False):
        q, k, v = (
            F.linear(given, w[f"{name}.to_{part}.weight"]).unflatten(-1, (heads, d)).transpose(1, 2)
            for part, given in (("q", tokens), ("k", others), ("v", others))
        )
        logits = torch.einsum("bhid,bhjd->bhij", q, k)
        distance = torch.arange(tokens.shape[1])[None] - torch.arange(tokens.shape[1])[:, None]
        rows = distance.clamp(-length, length) + length
        if positions:
            keys = w[f"{name}.relative_position_k.embeddings_table"][rows]
            logits = logits + torch.einsum("bhid,ijd->bhij", q, keys)
        weights = (logits * d**-0.5).softmax(-1)
        out = weights @ v
        if positions:
            out = out + torch.einsum("bhij,ijd->bhid", weights, w[f"{name}.relative_position_v.embeddings_table"][rows])
        return F.linear(out.transpose(1, 2).flatten(2), w[f"{name}.to_out.0.weight"], w[f"{name}.to_out.0.bias"])

    h = F.group_norm(x, 32, w["norm.weight"], w["norm.bias"], 1e-6)
    h = F.conv3d(h, w["proj_in.weight"], w["proj_in.bias"]).permute(0, 2, 3, 4, 1).flatten(2, 3)
    block = "transformer_blocks.0."
    texts = context.repeat_interleave(frames, 0)
    for step, name in (("1", "attn1"), ("4", "attn1_tmp"), ("2", "attn2"), ("5", "attn2_tmp")):
        normal = norm(f"{block}norm{step}", h)
        if name.endswith("_tmp"):
            pixels = normal.transpose(1, 2).flatten(0, 1)
            out = attend(block + name, pixels, pixels, True).unflatten(0, (videos, -1)).transpose(1, 2)
        else:
            images = normal.flatten(0, 1)
            out = attend(block + name, images, texts if name == "attn2" else images).unflatten(0, (videos, -1))
        h = h + out
    inner = F.linear(norm(f"{block}norm3", h), w[f"{block}ff.net.0.proj.weight"], w[f"{block}ff.net.0.proj.bias"])
    value, gate = inner.chunk(2, -1)
    h = h + F.linear(value * F.gelu(gate), w[f"{block}ff.net.2.weight"], w[f"{block}ff.net.2.bias"])
    h = h.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
    return x + F.conv3d(h, w["proj_out.weight"], w["proj_out.bias"])


@torch.no_grad()
def test_transformer_as_published(released, relative_error):
    config = dataclasses.replace(TEXT, num_heads=4, temporal_length=2)
    weights = strip_prefix(released.network(config).state_dict(), "middle_block.1.")
    network = SpaceTimeTransformer(64, config)
    mapped = UNET_KEYS({f"middle_block.1.{name}": tensor for name, tensor in weights.items()})
    network.load_state_dict(strip_prefix(mapped, "skeleton.middle.0.attention."))
    x, context = noise(2, 64, 6, 4, 5), noise(2, 7, 24, seed=1)
    frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    found = network(frames, Step(6, torch.empty(0), context)).unflatten(0, (2, 6)).transpose(1, 2)
    expected = transformer_as_published(weights, x, context, 4, 2)
    # Relative to what the transformer adds.
    assert relative_error(found - x, expected - x) < TOLERANCE
