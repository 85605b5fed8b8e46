"""The kernel distance between two sets of features, which knows no bias of few samples.

Shapes: N, M samples, D features.
"""

import torch
from torch import Tensor

from .frechet import check_features


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) with the kernel (x.y / D + 1)^3, in float64.

    Unbiased, so that it may be negative: the form that KID (arXiv 1801.01401) and KVD (arXiv 1812.01717) use. Of two
    features the means within a set leave out pairs of a sample with itself; the mean across keeps all pairs.

    Raises:
        ValueError: not two matrices of one width, fewer than two samples in one, or a value that is not finite.
    """
    check_features(features_a, features_b)
    a, b = features_a.double(), features_b.double()
    return float(_mean_within(a) + _mean_within(b) - 2 * _kernel(a, b).mean())


def _mean_within(samples: Tensor) -> Tensor:
    values, count = _kernel(samples, samples), len(samples)
    return (values.sum() - values.diagonal().sum()) / (count * (count - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(torch.ones((), dtype=a.dtype), a, b.T, alpha=1 / a.shape[1]).pow(3)
