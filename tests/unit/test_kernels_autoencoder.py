"""The 3D autoencoder: numbers of the released implementation, and equal results of its ways to compute."""

import math
import zlib

import numpy as np
import pytest
import torch

from weft.kernels.networks import video_autoencoder
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.model_loaders.keymap import strip_prefix
from weft.model_loaders.lvdm import AUTOENCODER_KEYS, autoencoder_component

# Of the output's standard deviation: rounding in float32 stays below it.
TOLERANCE = 3e-5
TINY = VideoAutoencoderConfig(n_hiddens=16, downsample=(2, 4, 4))


def config_of(description):
    said = description["config"]
    return VideoAutoencoderConfig(
        n_hiddens=said["n_hiddens"],
        downsample=tuple(said["downsample"]),
        z_channels=said["z_channels"],
        embed_dim=said["embed_dim"],
        image_channels=said["image_channel"],
    )


def half(parity, name, *parts):
    """The network with the weights of one half, the other half left as it was drawn."""
    description, tensors = parity(name)
    network = VideoAutoencoder(config_of(description))
    result = network.load_state_dict(AUTOENCODER_KEYS(strip_prefix(tensors, "w.")), strict=False)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if key.startswith(parts)]
    return network, tensors, description


@torch.no_grad()
def test_encoder(parity, relative_error):
    network, tensors, description = half(parity, "ae_encoder", "encoder.", "quant_conv.")
    hidden = network.encoder(tensors["x"])
    mean, log_variance = network.moments(tensors["x"])
    sample = mean + (0.5 * log_variance).exp() * tensors["posterior_noise"]
    found = {
        "encoder_out": hidden,
        "moments": network.quant_conv(hidden),
        "posterior_mean": mean,
        "posterior_logvar": log_variance,
        "z": sample,
        "z_scaled": description["scale_factor"] * (sample + description["shift_factor"]),
    }
    errors = {name: relative_error(tensor, tensors[name]) for name, tensor in found.items()}
    assert max(errors.values()) < TOLERANCE, errors
    torch.testing.assert_close(network.encode(tensors["x"]), mean, rtol=0, atol=0)
    # Divergence from a unit Gaussian; the released code sums four axes as if latents were images, so the width is left.
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence, tensors["kl"], rtol=1e-5, atol=0)


@torch.no_grad()
def test_decoder(parity, relative_error):
    network, tensors, description = half(parity, "ae_decoder", "decoder.", "post_quant_conv.")
    z = tensors["z_scaled"] / description["scale_factor"] - description["shift_factor"]
    assert relative_error(z, tensors["z"]) < TOLERANCE
    assert relative_error(network.decode(z), tensors["y"]) < TOLERANCE


def uniform(salt, key, count):
    """The pseudo-random numbers of the full-size fixture: `count` values in -1..1 for a tensor's name (splitmix64)."""
    seed = zlib.crc32((salt + key).encode()) * 0xD1342543DE82EF95 % 2**64
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def ruled_weight(salt, key, shape):
    """A weight of the full-size fixture: b + a * u, with a and b by the kind of tensor."""
    norm = "norm" in key or key.startswith("encoder.final_block.0.")
    if key.endswith(".bias"):
        scale, offset = 0.1, 0.0
    elif norm:
        scale, offset = 0.3, 1.0
    elif ".convt." in key:
        scale, offset = math.sqrt(3 / (8 * shape[0])), 0.0
    else:
        scale, offset = math.sqrt(3 / math.prod(shape[1:])), 0.0
    values = offset + scale * uniform(salt, key, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


@torch.no_grad()
def test_full_size(parity, manifest, relative_error):
    description, tensors = parity("ae_full_size")
    released = {key: tensor.shape for key, tensor in manifest("video_ae").items() if not key.startswith("loss.")}
    doubled = {key.replace(".conv.weight", ".weight") for key in released if key.endswith(".conv.weight")}
    rule = description["weights"]
    weights = {key: ruled_weight(rule["salt"], key, released[key]) for key in released if key not in doubled}
    for key, values in rule["probes"].items():
        assert weights[key].flatten()[: len(values)].tolist() == values
    component = autoencoder_component(weights)
    assert component.config == config_of(description) == VideoAutoencoderConfig()
    network = component.build()
    assert sum(tensor.numel() for tensor in network.parameters()) == 19_446_759
    hidden = network.encoder(tensors["x"])
    found = {
        "encoder_out": hidden,
        "moments": network.quant_conv(hidden),
        "posterior_mean": network.encode(tensors["x"]),
        "y_from_mean": network.decode(tensors["posterior_mean"]),
        "y_from_z_in": network.decode(tensors["z_in"]),
    }
    errors = {name: relative_error(tensor, tensors[name]) for name, tensor in found.items()}
    assert max(errors.values()) < TOLERANCE, errors


def tiny_network():
    torch.manual_seed(0)
    return VideoAutoencoder(TINY)


@pytest.mark.parametrize("values", [1, 3000, 20_000])
def test_convolution_in_chunks_equals_whole(monkeypatch, relative_error, values):
    """Without gradients, a few frames at a time; with gradients, the whole clip."""
    network = tiny_network()
    x, z = torch.randn(2, 3, 10, 12, 20), torch.randn(2, 4, 5, 3, 5)
    whole = network.moments(x) + (network.decode(z),)
    monkeypatch.setattr(video_autoencoder, "_CHUNK_VALUES", values)
    with torch.no_grad():
        chunked = network.moments(x) + (network.decode(z),)
    # Other shapes of the same products round differently.
    assert max(relative_error(part, full.detach()) for part, full in zip(chunked, whole, strict=True)) < 1e-5


def test_gradients_reach_every_weight():
    network = tiny_network()
    mean, log_variance = network.moments(torch.randn(1, 3, 4, 8, 8))
    (network.decode(mean).square().mean() + log_variance.square().mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


@torch.no_grad()
def test_clips_of_a_batch_are_independent(relative_error):
    """In float64: in float32 the processor decides how far one clip alone is rounded otherwise (1.1e-5 was seen)."""
    network = tiny_network().double()
    x = torch.randn(2, 3, 4, 8, 12, dtype=torch.float64)
    mean = network.encode(x)
    alone = torch.cat([network.encode(clip) for clip in x.split(1)])
    assert relative_error(alone, mean) < 1e-12
    decoded = torch.cat([network.decode(z) for z in mean.split(1)])
    assert relative_error(decoded, network.decode(mean)) < 1e-12


def test_input_is_not_changed():
    """Work in place stays inside the network."""
    network = tiny_network()
    x, z = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 4, 2, 2, 2)
    before = x.clone(), z.clone()
    with torch.no_grad():
        network.encode(x), network.decode(z)
    assert torch.equal(x, before[0]) and torch.equal(z, before[1])


@pytest.mark.parametrize("size", [(3, 8, 8), (4, 6, 8), (4, 8, 10)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=r"multiples of \(2, 4, 4\)") as caught:
        tiny_network().moments(torch.zeros(1, 3, *size))
    assert str(size) in str(caught.value)
