"""FVD and KVD against the released numbers, I3D against its file's names, and what the matrix root is worth."""

import numpy as np
import pytest
import scipy.linalg
import torch

from weft.kernels.analysis.frechet import frechet_distance
from weft.kernels.analysis.kernel_distance import kernel_distance
from weft.kernels.networks.inception3d import Inception3D, Inception3DConfig, Unit, preprocess
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.inception3d import KEYS, read_inception3d

SMALL = Inception3DConfig((2, 3, 4), (((1, 2, 3, 1, 2, 1),), ((2, 1, 2, 1, 1, 1),), ((1, 1, 2, 2, 3, 2),)), 5)


# What the released numbers hold to, by their description: 1e-3 where samples are fewer than features, else 1e-4.
# The exact root is nearer to both; float32 is what remains.
@pytest.mark.parametrize("case", ["a", "b"])
def test_fvd_is_the_released_number(parity, case):
    _, tensors = parity("metrics")
    found = frechet_distance(tensors[f"{case}_fake"], tensors[f"{case}_real"])
    assert found == pytest.approx(float(tensors[f"{case}_fvd"]), rel=1e-5)


@pytest.mark.parametrize("case", ["a", "b"])
def test_kvd_is_the_released_number(parity, case):
    """That was summed in float32, whose last digit is 1.2e-5 of the smaller one: the same sums give it to 1e-6."""
    _, tensors = parity("metrics")
    fake, real, released = (tensors[f"{case}_{name}"] for name in ("fake", "real", "kvd"))
    assert float32_kernel_distance(fake.numpy(), real.numpy()) == pytest.approx(float(released), rel=1e-6)
    assert kernel_distance(fake, real) == pytest.approx(float(released), rel=5e-5)
    assert kernel_distance(real, fake) == pytest.approx(kernel_distance(fake, real), rel=1e-12)


def float32_kernel_distance(a, b):
    def within(samples):
        values, count = kernel(samples, samples), len(samples)
        return (values.sum(axis=1) - np.diag(values)).sum() / (count * (count - 1))

    def kernel(one, other):
        return (one @ other.T / np.float32(one.shape[1]) + np.float32(1)) ** 3

    return within(a) + within(b) - 2 * kernel(a, b).sum() / (len(a) * len(b))


def released_root(matrix):
    """By singular values, of which the smallest are left as they are."""
    left, values, right = torch.linalg.svd(matrix)
    return left @ torch.diag(torch.where(values < 1e-10, values, values.sqrt())) @ right


def other_roots(a, b):
    """The distance with the root of a matrix as programs take it."""
    shift = float((a.mean(0) - b.mean(0)).square().sum())
    covariances = torch.cov(a.T), torch.cov(b.T)
    traces = shift + float(sum(c.trace() for c in covariances))
    inner = released_root(covariances[0])
    product = (covariances[0] @ covariances[1]).double().numpy()
    offset = np.eye(len(product)) * 1e-6
    shifted = (covariances[0].double().numpy() + offset) @ (covariances[1].double().numpy() + offset)
    return {
        "released, float32": traces - 2 * float(released_root(inner @ covariances[1] @ inner).trace()),
        "diagonal 1e-6": traces - 2 * float(np.trace(scipy.linalg.sqrtm(shifted)).real),
    }


def test_the_root_of_the_matrix_decides_where_samples_are_few(parity):
    """48 and 64 samples of 400 features: a diagonal of 1e-6, which FID's first program adds, takes 0.14 % off."""
    _, tensors = parity("metrics")
    a, b = tensors["a_fake"], tensors["a_real"]
    exact, others = frechet_distance(a, b), other_roots(a, b)
    assert others["released, float32"] == pytest.approx(exact, rel=1e-5)
    assert exact == pytest.approx(544.8146, abs=1e-3)
    assert 1e-4 < abs(others["diagonal 1e-6"] / exact - 1) < 5e-3
    # As many samples as it takes: any root will do.
    a, b = tensors["b_fake"], tensors["b_real"]
    for value in other_roots(a, b).values():
        assert value == pytest.approx(frechet_distance(a, b), rel=1e-4)


def test_frames_reach_the_network_as_released(parity):
    _, tensors = parity("metrics")
    found = preprocess(tensors["video_uint8"])[..., ::16, ::16]
    assert (found - tensors["preprocessed_every_16th"]).abs().max() < 1e-6


def test_the_network_has_the_released_tensors(manifest):
    with torch.device("meta"):
        network = Inception3D()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in KEYS(manifest("i3d")).items()} == shapes


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "first", "last"),
    # 224 at stride 2 of 7: TensorFlow puts 2 before and 3 behind; 9: 3 and 3.
    [(224, 7, 2, 2, 3), (9, 7, 2, 3, 3), (8, 3, 1, 1, 1)],
)
def test_padding_follows_the_input(size, kernel, stride, first, last):
    unit = Unit(1, 1, kernel, stride).eval().requires_grad_(False)
    torch.nn.init.ones_(unit.conv.weight)
    counts = unit(torch.ones(1, 1, size, kernel, kernel))[0, 0, :, 0, 0]
    # A window counts the ones in it: along T what padding leaves, across it the same for all.
    across = unit(torch.ones(1, 1, 6 * kernel, kernel, kernel))[0, 0, 3, 0, 0] / kernel
    assert len(counts) == -(-size // stride)
    assert float(counts[0] / across) == pytest.approx(kernel - first, rel=1e-5)
    assert float(counts[-1] / across) == pytest.approx(kernel - last, rel=1e-5)


def test_clips_of_all_lengths_become_one_row_of_features():
    torch.manual_seed(0)
    network = Inception3D(SMALL).eval()
    with torch.no_grad():
        for frames in (9, 16):
            assert network(torch.zeros(2, 3, frames, 224, 224)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"8 frames of 224 x 224: I3D takes at least 9, 224 x 224"):
            network(torch.zeros(1, 3, 8, 224, 224))


def test_other_files_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt holds conv1.weight, expected I3D's Conv3d_1a_7x7"):
        read_inception3d(tmp_path / "other.pt")
    torch.save({"Mixed_3b.b0.bn.weight": torch.zeros(3)}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="part.pt does not fit Inception3D"):
        read_inception3d(tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        read_inception3d(tmp_path / "none.pt")


@pytest.mark.parametrize("counts", [(30, 20), (2, 2)])
def test_kernel_distance_is_the_mean_over_pairs(counts):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, 3, generator=generator) + place for place, count in enumerate(counts))

    def value(one, other):
        return float((one.double() @ other.double() / 3 + 1) ** 3)

    within = [np.mean([value(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    across = np.mean([value(one, other) for one in x for other in y])
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    with pytest.raises(ValueError, match="expected two matrices"):
        kernel_distance(x, y[:, :2])
