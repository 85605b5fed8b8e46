"""The TCM-VAE: its parts, its decoding of videos whole and part by part, its files, and bad input."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from weft.kernels.networks.temporal_vae import (
    CompensationModule,
    RefinementNetwork,
    TemporalDecoder,
    TemporalVAE,
    TemporalVAEConfig,
)
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec, read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.temporal_vae import save_temporal_vae

TINY = TemporalVAEConfig(widths=(32, 48), refinement_channels=32, refinement_mult=(1, 2), refinement_blocks=1)


def size(network):
    return sum(weight.numel() for weight in network.parameters())


def test_sizes():
    with torch.device("meta"):
        network = TemporalVAE(TemporalVAEConfig())
    assert [size(level) for level in network.levels] == [404_038, 1_611_606, 6_437_494, 6_437_494]
    assert size(network.refine) == 13_353_155
    assert size(network) == 14_890_632 + 13_353_155


@torch.no_grad()
def test_it_begins_as_the_image_decoder():
    torch.manual_seed(0)
    network = TemporalVAE(TINY)
    z, images = torch.randn(2 * 5, 48, 6, 4), torch.randn(2 * 5, 3, 8, 6)
    assert (network.compensate(z, 2, 5) - z).abs().max() > 0.01
    assert (network.refine(images) - images).abs().max() > 0.01
    network.start_as_image_decoder()
    assert torch.equal(network.compensate(z, 2, 5), z)
    assert torch.equal(network.refine(images), images)


def test_all_of_it_can_be_trained_from_its_beginning():
    """Zeros stand in one place of each path only, so that gradients reach everything in three steps."""
    torch.manual_seed(0)
    network = TemporalVAE(TINY)
    network.start_as_image_decoder()
    z, images = torch.randn(5, 48, 6, 4), torch.randn(5, 3, 8, 6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = network.compensate(z, 2, 5).square().mean() + network.refine(images).square().mean()
        loss.backward()
        optimizer.step()
    trained = [*network.levels[1].named_parameters(), *network.refine.named_parameters()]
    still = [name for name, weight in trained if weight.grad.abs().max() == 0]
    assert not still


@torch.no_grad()
def test_a_module_reaches_four_frames():
    """Two for each convolution: by the shift, then by the kernel over time."""
    torch.manual_seed(0)
    module = CompensationModule(32).double()
    for conv in (module.conv1, module.conv2):
        conv.gate.weight.normal_()
    z = torch.randn(13, 32, 4, 4, dtype=torch.float64)
    changed = z.clone()
    changed[6] += torch.randn_like(z[6])
    reached = (module(changed, 13) - module(z, 13)).abs().amax((1, 2, 3)) > 1e-12
    assert reached.tolist() == [abs(frame - 6) <= 4 for frame in range(13)]


@torch.no_grad()
def test_refinement_is_of_single_frames_and_clips_stay_apart():
    torch.manual_seed(0)
    network = TemporalVAE(TINY)
    images, z = torch.randn(4, 3, 8, 6), torch.randn(6, 32, 4, 4)
    alone = torch.cat([network.refine(image[None]) for image in images])
    # The same sums in another order.
    torch.testing.assert_close(network.refine(images), alone, rtol=0, atol=1e-5)
    clips = torch.cat([network.compensate(clip, 1, 3) for clip in z.split(3)])
    torch.testing.assert_close(network.compensate(z, 1, 3), clips, rtol=0, atol=1e-5)


def test_bad_input():
    network = TemporalVAE(TINY)
    with pytest.raises(ValueError, match="Frames are 7 x 8, expected sides that are multiples of 2"):
        network.refine(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match="Found 7 frames, expected a multiple of the clip's length, 3"):
        network.compensate(torch.zeros(7, 32, 4, 4), 1, 3)
    with pytest.raises(ValueError, match="multiples of 4"):
        RefinementNetwork(TemporalVAEConfig())(torch.zeros(1, 3, 8, 6))


# Around an image decoder


class Decoder(torch.nn.Module):
    """An image decoder of two levels, whose second one doubles height and width."""

    def __init__(self):
        super().__init__()
        self.deep, self.up = torch.nn.Conv2d(4, 48, 3, padding=1), torch.nn.Conv2d(48, 32, 3, padding=1)
        self.out = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, z):
        return self.out(self.up(torch.nn.functional.interpolate(self.deep(z).tanh(), scale_factor=2)).tanh())


@pytest.fixture
def around():
    """An image decoder, a network in which everything acts, and both together, in float64."""
    torch.manual_seed(0)
    decoder, network = Decoder().double(), TemporalVAE(TINY).double()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return decoder, network, TemporalDecoder(network, decoder, [decoder.deep, decoder.up])


@torch.no_grad()
def test_a_video_is_decoded_as_the_equations_say(around):
    decoder, network, temporal = around
    latents, features = torch.randn(2, 4, 5, 3, 4, dtype=torch.float64), []
    found = temporal(latents, features=features)
    rows = latents.transpose(1, 2).flatten(0, 1)
    deep = network.compensate(decoder.deep(rows), 2, 5)
    shallow = network.compensate(decoder.up(torch.nn.functional.interpolate(deep.tanh(), scale_factor=2)), 1, 5)
    expected = network.refine(decoder.out(shallow.tanh()))
    torch.testing.assert_close(found, expected.unflatten(0, (2, 5)).transpose(1, 2), rtol=0, atol=1e-12)
    for feature, compensated in zip(features, (deep, shallow), strict=True):
        torch.testing.assert_close(feature, compensated, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 3, 8, 30])
def test_parts_are_those_of_the_whole_clip(around, at_once):
    """To rounding: every frame sees as far as in the whole clip, by 4 frames for each of two levels."""
    _, _, temporal = around
    latents = 0.3 * torch.randn(1, 4, 21, 3, 4, dtype=torch.float64)
    whole = temporal(latents)
    parts = [temporal(latents, range(start, min(start + at_once, 21))) for start in range(0, 21, at_once)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-11)
    # What a part must not leave out: the farthest frames hardly show.
    torch.testing.assert_close(temporal(latents[:, :, 2:], range(8, 9)), whole[:, :, 10:11], rtol=0, atol=1e-11)
    assert (temporal(latents[:, :, 7:], range(3, 4)) - whole[:, :, 10:11]).abs().max() > 1e-6


@torch.no_grad()
def test_only_what_a_part_sees_is_computed(around):
    decoder, _, temporal = around
    rows = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, out: rows.append(len(inputs[0])))
        for layer in (decoder.deep, decoder.up, decoder.out)
    ]
    temporal(torch.randn(2, 4, 40, 3, 4, dtype=torch.float64), range(18, 20))
    for hook in hooks:
        hook.remove()
    assert rows == [2 * 18, 2 * 10, 2 * 2]


@torch.no_grad()
def test_the_image_decoder_is_left_as_it_was(around):
    decoder, network, temporal = around
    latents = torch.randn(1, 4, 3, 3, 4, dtype=torch.float64)
    rows = latents[0].transpose(0, 1)
    before = decoder(rows)
    temporal(latents)
    assert torch.equal(decoder(rows), before) and not decoder.deep._forward_hooks
    # Nor does a call that fails leave anything behind.
    with pytest.raises(RuntimeError):
        temporal(torch.randn(1, 5, 3, 3, 4, dtype=torch.float64))
    assert torch.equal(decoder(rows), before) and not decoder.up._forward_hooks
    network.start_as_image_decoder()
    torch.testing.assert_close(temporal(latents)[0].transpose(0, 1), before, rtol=0, atol=1e-12)


def test_levels_that_do_not_fit(around):
    decoder, network, _ = around
    with pytest.raises(ValueError, match="The decoder has 1 levels, expected 2"):
        TemporalDecoder(network, decoder, [decoder.deep])


# Files


def test_files_hold_the_layout_and_come_back(tmp_path):
    torch.manual_seed(0)
    network = TemporalVAE(TemporalVAEConfig((32, 48), 6, 32, (1, 2), 2))
    path = tmp_path / "tcm.safetensors"
    save_temporal_vae(path, network, steps=7)
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        assert file.metadata()["format"] == "tcm_vae" and file.metadata()["latent_channels"] == "6"
    assert shapes["decoder.tcm.2.mec1.temporal.weight"] == (48, 48, 3, 1, 1)
    assert shapes["decoder.tcm.1.mec2.gate"] == (32,) and shapes["decoder.tcm.1.norm2.weight"] == (32,)
    assert shapes["decoder.tcm.1.mec1.weight"] == (32, 32, 3, 3) and shapes["refine.conv_in.weight"] == (32, 3, 3, 3)
    checkpoint = read(path)
    component = checkpoint.component("temporal_vae")
    assert component.config == network.config and checkpoint.metadata["steps"] == "7"
    again = component.build()
    assert all(torch.equal(again.state_dict()[name], x) for name, x in network.state_dict().items())
    # Names of a multi-excitation convolution are those of the denoiser's files.
    assert {name.split("mec1.")[1] for name in shapes if ".1.mec1." in name} == {
        "weight", "bias", "temporal.weight", "temporal.bias", "shift.weight", "ste.weight", "ce.squeeze.weight",
        "ce.temporal.weight", "ce.expand.weight", "me.squeeze.weight", "me.spatial.weight", "me.expand.weight", "gate",
    }  # fmt: skip


def test_files_with_the_image_vae_beside_and_bundles(tmp_path):
    network = TemporalVAE(TINY)
    save_temporal_vae(tmp_path / "alone.safetensors", network)
    tensors = load_file(tmp_path / "alone.safetensors")
    beside = {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3), "encoder.conv_in.bias": torch.zeros(8)}
    save_file({**tensors, **beside, "post_quant_conv.bias": torch.zeros(4)}, tmp_path / "whole.safetensors")
    found = read(tmp_path / "whole.safetensors").component("temporal_vae").tensors
    assert found.keys() == network.state_dict().keys()
    parts = {"temporal_vae": network}
    save_bundle(
        tmp_path / "bundle.safetensors", parts, system="x", latent=LatentSpec(), schedule=NoiseSchedule(), metadata={}
    )
    assert read(tmp_path / "bundle.safetensors").component("temporal_vae").config == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("decoder.tcm.1.mec1.gate"), r"levels\.0\.conv1\.gate\.weight \(32, 1, 1, 1\) is missing"),
        (lambda x: x.update({"refine.more": torch.zeros(1)}), r"refine\.more \(1,\) is unexpected"),
        (lambda x: x.pop("refine.conv_in.weight"), "tcm_vae family, but tensors that every such file has are missing"),
        (lambda x: x["refine.conv_in.bias"].fill_(torch.nan), r"NaN or infinite values in refine\.conv_in\.bias"),
    ],
)
def test_damaged_files(tmp_path, change, message):
    save_temporal_vae(tmp_path / "x.safetensors", TemporalVAE(TINY))
    tensors = load_file(tmp_path / "x.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "x.safetensors")
