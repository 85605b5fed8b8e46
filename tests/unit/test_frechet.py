"""The Frechet distance where it is known, and beside an independent computation."""

import numpy as np
import pytest
import torch

from weft.kernels.analysis.frechet import frechet_distance


def drawn(count=200, width=12, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(samples):
    """Samples with a mean of 0 and a covariance of 1, exactly."""
    centred = samples - samples.mean(dim=0)
    return torch.linalg.qr(centred).Q * (len(samples) - 1) ** 0.5


@pytest.mark.parametrize("count", [2, 5, 12, 13, 200])
def test_equal_sets_have_none(count):
    """With fewer samples than features, too: covariances then lack ranks."""
    samples = 3 + drawn(count)
    assert frechet_distance(samples, samples) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(samples, samples.flip(0)) == pytest.approx(0, abs=1e-10)


def test_a_shift_counts_by_its_square():
    samples = drawn()
    shift = torch.linspace(-1, 2, 12, dtype=torch.float64)
    assert frechet_distance(samples, samples + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)


def test_diagonal_covariances():
    """Independent features with deviations s and t: the sum of (s - t)^2."""
    first, second = torch.linspace(0.5, 2, 12, dtype=torch.float64), torch.linspace(3, 0, 12, dtype=torch.float64)
    found = frechet_distance(whitened(drawn(200)) * first, whitened(drawn(90, seed=1)) * second)
    assert found == pytest.approx(float((first - second).square().sum()), rel=1e-10)


def test_one_gaussian_lies_in_a_plane_across_the_other():
    """Nothing is shared by covariances without a common direction: the sum of their traces."""
    first, second = whitened(drawn()).clone(), whitened(drawn(seed=1)).clone()
    first[:, :4], second[:, 4:] = 0, 0
    assert frechet_distance(first, second) == pytest.approx(12, rel=1e-10)


@pytest.mark.parametrize("counts", [(300, 40), (40, 7), (5, 6)])
def test_equals_the_eigenvalues_of_the_product(counts):
    """tr (AB)^(1/2) is the sum of the roots of the eigenvalues of AB, which need not be symmetric."""
    first, second = (drawn(count, 10, seed) @ drawn(10, 10, 7 + seed) for seed, count in enumerate(counts))
    second = second + 0.5
    covariances = [np.cov(samples.numpy(), rowvar=False) for samples in (first, second)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    shift = np.square(first.numpy().mean(axis=0) - second.numpy().mean(axis=0)).sum()
    expected = shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-12)


def test_float32_is_measured_in_float64():
    """Features far from zero: in float32 their squares alone would be off by 1."""
    samples = 4096 + torch.randint(0, 8, (64, 6), generator=torch.Generator().manual_seed(0)).float()
    assert frechet_distance(samples, samples + 0.125) == pytest.approx(6 * 0.125**2, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), r"shapes \(4, 3\) and \(4, 2\): expected two matrices"),
        (torch.zeros(3), torch.zeros(4, 3), r"shapes \(3,\) and \(4, 3\)"),
        (torch.zeros(4, 3), torch.zeros(1, 3), "A set of 1 samples has no covariance: give at least 2"),
        (torch.full((4, 3), float("nan")), torch.zeros(4, 3), "Some features are not finite"),
    ],
)
def test_impossible_sets_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)
