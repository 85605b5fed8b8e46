"""Fast forms against the plain ones and against definitions written out: normalisation, attention over time, chunks."""

import math

import pytest
import torch
import torch.nn.functional as F

from weft.kernels.fused import group_norm as module
from weft.kernels.fused.group_norm import group_norm, group_norm_plain
from weft.kernels.fused.temporal_attention import temporal_attention
from weft.kernels.layers import chunking
from weft.kernels.layers.chunking import add_residual, chunk_size, map_images
from weft.kernels.layers.temporal import PixelNorm, RelativePositions, TemporalAttention

LAST = torch.channels_last


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_norm(x, groups, weight, bias, eps, frames, scale=None, shift=None, activation=None):
    """The formula in float64, video by video and group by group."""
    out = torch.empty(x.shape, dtype=torch.float64)
    width = x.shape[1] // groups
    for video, part in enumerate(x.double().split(frames)):
        for group in range(groups):
            channels = slice(group * width, (group + 1) * width)
            values = part[:, channels]
            normal = (values - values.mean()) / (values.var(correction=0) + eps).sqrt()
            normal = normal * weight.double()[channels, None, None] + bias.double()[channels, None, None]
            if scale is not None:
                factor, offset = scale[video, channels, None, None], shift[video, channels, None, None]
                normal = normal * (1 + factor.double()) + offset.double()
            out[video * frames : (video + 1) * frames, channels] = (
                getattr(F, activation)(normal) if activation else normal
            )
    return out


class TestGroupNorm:
    # The fast form begins at 2^20 values; below it torch's own kernel runs.
    SIZES = {"small": (6, 64, 7, 5), "large": (6, 64, 61, 47)}

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("frames", [1, 3, 6])
    @pytest.mark.parametrize("modulated", [False, True])
    @pytest.mark.parametrize("activation", [None, "silu", "gelu"])
    @torch.no_grad()
    def test_is_exact(self, size, frames, modulated, activation):
        shape = self.SIZES[size]
        # Values far from zero: sums of squares would lose the variance.
        x = (noise(*shape) * 0.5 + 8).contiguous(memory_format=LAST)
        weight, bias = 1 + noise(64, seed=1), noise(64, seed=2)
        extra = {"activation": activation}
        if modulated:
            extra |= {"scale": noise(6 // frames, 64, seed=3), "shift": noise(6 // frames, 64, seed=4)}
        assert (x.numel() >= module._SMALL) == (size == "large")
        found = group_norm(x, 32, weight, bias, 1e-5, frames=frames, **extra)
        expected = exact_norm(x, 32, weight, bias, 1e-5, frames, **extra)
        # x - 8 in float32 has 2^-21 absolute, times at most 1/0.5 * 4 * 4 of weight and scale.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
        assert found.is_contiguous(memory_format=LAST)

    @pytest.mark.parametrize("frames", [1, 3])
    @pytest.mark.parametrize("activation", ["silu", "gelu"])
    @torch.no_grad()
    def test_fast_equals_plain(self, monkeypatch, frames, activation):
        monkeypatch.setattr(module, "_SMALL", 0)
        x = noise(6, 64, 7, 5)
        weight, bias = 1 + noise(64, seed=1), noise(64, seed=2)
        extra = {"scale": noise(6 // frames, 64, seed=3), "shift": noise(6 // frames, 64, seed=4)}
        extra["activation"] = activation
        for given in (x, x.contiguous(memory_format=LAST), x.transpose(2, 3)):
            before = given.clone()
            fast = group_norm(given, 32, weight, bias, 1e-5, frames=frames, **extra)
            plain = group_norm_plain(given, 32, weight, bias, 1e-5, frames=frames, **extra)
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
            assert torch.equal(given, before)

    def test_gradients_are_those_of_the_definition(self):
        x = noise(4, 64, 65, 65)
        weight, bias = (1 + noise(64, seed=1)).requires_grad_(), noise(64, seed=2).requires_grad_()
        assert x.numel() >= module._SMALL
        found = torch.autograd.grad(group_norm(x, 32, weight, bias, 1e-5, frames=2).square().mean(), [weight, bias])
        video = x.unflatten(0, (2, 2)).transpose(1, 2)
        expected = torch.autograd.grad(F.group_norm(video, 32, weight, bias, 1e-5).square().mean(), [weight, bias])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pixel_norm_is_a_group_norm_of_every_pixel():
    torch.manual_seed(0)
    norm = PixelNorm(64)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    x = noise(2, 5, 6, 64) + 4
    found = norm(x)
    for video in range(2):
        for pixel in range(6):
            expected = F.group_norm(x[video, :, pixel].T[None], 32, norm.norm.weight, norm.norm.bias, 1e-5)
            torch.testing.assert_close(found[video, :, pixel], expected[0].T, rtol=1e-4, atol=1e-5)


def naive_attention(q, k, v, heads, tables, length, transposed):
    """LVDM's attention over time for every pixel and head by itself; tables (2 * length + 1, D) or None."""
    out = torch.zeros_like(q)
    videos, count, pixels, width = q.shape
    d = width // heads

    def row(table, n):
        return table[max(-length, min(length, n)) + length] if table is not None else q.new_zeros(d)

    for video in range(videos):
        for pixel in range(pixels):
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                qs, ks, vs = (x[video, :, pixel, part] for x in (q, k, v))
                logits = q.new_zeros(count, count)
                for i in range(count):
                    for j in range(count):
                        if transposed:
                            c = d**-0.25
                            logits[i, j] = (c * qs[i]) @ (c * ks[j]) + (c * qs[j]) @ row(tables[0], i - j)
                        else:
                            logits[i, j] = d**-0.5 * (qs[i] @ ks[j] + qs[i] @ row(tables[0], j - i))
                weights = logits.softmax(1)
                for i in range(count):
                    total = sum(weights[i, j] * (vs[j] + row(tables[1], j - i)) for j in range(count))
                    out[video, i, pixel, part] = total
    return out


class TestTemporalAttention:
    @pytest.mark.parametrize("transposed", [True, False])
    @pytest.mark.parametrize("length", [2, 6, None])
    def test_is_the_formula(self, transposed, length):
        q, k, v = noise(3, 2, 5, 3, 8).double()
        tables = noise(2, 2 * length + 1, 4, seed=1).double() if length else (None, None)
        positions = {}
        if length:
            distance = (torch.arange(5)[None] - torch.arange(5)[:, None]).clamp(-length, length) + length
            key_distance = distance.T if transposed else distance
            positions = {"key_positions": tables[0][key_distance], "value_positions": tables[1][distance]}
        found = temporal_attention(q, k, v, 2, transposed=transposed, **positions)
        expected = naive_attention(q, k, v, 2, tables, length, transposed)
        # The softmax is taken in float32.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("transposed", [True, False])
    @torch.no_grad()
    def test_layer_is_the_formula(self, transposed):
        """Projections and tables of the module; 7 frames are more than the tables reach."""
        torch.manual_seed(0)
        layer = TemporalAttention(8, 2, max_distance=3, qkv_bias=True, transposed_keys=transposed)
        x = noise(2, 7, 3, 8)
        q, k, v = F.linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
        tables = layer.key_positions.table.weight, layer.value_positions.table.weight
        expected = layer.out(naive_attention(q, k, v, 2, tables, 3, transposed))
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)

    def test_without_tables_it_is_ordinary_attention(self):
        q, k, v = noise(3, 2, 6, 5, 12)
        split = [x.unflatten(-1, (3, 4)).permute(0, 2, 3, 1, 4) for x in (q, k, v)]
        expected = F.scaled_dot_product_attention(*split).permute(0, 3, 1, 2, 4).flatten(3)
        torch.testing.assert_close(temporal_attention(q, k, v, 3), expected, rtol=0, atol=1e-6)

    def test_positions(self):
        positions = RelativePositions(2, 1)
        positions.table.weight.data = torch.arange(-2.0, 3.0)[:, None]
        forward, backward = (positions(4, torch.zeros(1), reverse=reverse)[..., 0] for reverse in (False, True))
        assert forward.tolist() == [[0, 1, 2, 2], [-1, 0, 1, 2], [-2, -1, 0, 1], [-2, -2, -1, 0]]
        assert torch.equal(backward, -forward)


class TestChunks:
    def test_number_of_rows(self, monkeypatch):
        monkeypatch.setattr(chunking, "_BUDGET_BYTES", {"cpu": 4000})
        assert chunk_size(1000, 100, torch.zeros(1)) == 10
        assert chunk_size(1000, 100, torch.zeros(1, dtype=torch.float16)) == 20
        assert chunk_size(7, 1, torch.zeros(1)) == 7
        assert chunk_size(1000, 10**6, torch.zeros(1)) == 1

    @pytest.mark.parametrize("dim", [0, 1])
    @pytest.mark.parametrize("budget", [1, 4 * 30 * 7, 1 << 30])
    def test_residual_in_chunks_equals_whole(self, monkeypatch, dim, budget):
        monkeypatch.setattr(chunking, "_BUDGET_BYTES", {"cpu": budget})
        sizes = []

        def function(part):
            sizes.append(part.shape[dim])
            return part.square()

        x = noise(11, 13, 2)
        expected = x + x.square()
        with torch.no_grad():
            found = add_residual(x.clone(), function, dim, 30)
        assert torch.equal(found, expected)
        rows = x.shape[dim]
        assert max(sizes) == min(rows, max(1, budget // (4 * 30))) and len(sizes) == math.ceil(rows / max(sizes))

    def test_with_gradients_the_input_stays(self):
        x = noise(5, 3).requires_grad_()
        before = x.detach().clone()
        out = add_residual(x, torch.square, 0, 10**9)
        assert torch.equal(x.detach(), before) and torch.equal(out.detach(), before + before.square())
        out.sum().backward()
        torch.testing.assert_close(x.grad, 1 + 2 * before)


@torch.no_grad()
def test_image_layers_are_called_in_parts_that_pay():
    """As many images together as fit 6 MB, or have the size of the layer's weights; all where a row is shared."""
    images, rows, sizes = torch.randn(6, 4, 8, 8), torch.randn(6, 3), []

    def function(part: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part * row.mean(dim=1)[:, None, None, None]

    for width, weights, expected in (
        (1 << 19, 8, [3, 3]),
        (1 << 21, 8, [1] * 6),
        (1 << 21, 1 << 22, [2, 2, 2]),
        (1 << 21, 1 << 24, [6]),
    ):
        sizes.clear()
        layer = torch.nn.Linear(weights, 1, bias=False, device="meta")
        found = map_images(layer, function, images, rows, width)
        assert torch.equal(found, function(images, rows)) and sizes == [*expected, 6]
    sizes.clear()
    map_images(layer, function, images, rows[:1], 1 << 21)
    assert sizes == [6]
