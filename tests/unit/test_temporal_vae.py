"""The TCM-VAE's parts: sizes, beginning, how far frames reach, and bad input."""

import pytest
import torch

from weft.kernels.networks.temporal_vae import CompensationModule, RefinementNetwork, TemporalVAE, TemporalVAEConfig

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
