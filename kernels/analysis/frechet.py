"""The Frechet distance between two sets of features, each taken as a Gaussian.

Shapes: N, M samples, D features.
"""

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features (N, D) and (M, D), in float64.

    Dowson and Landau 1982, as FID (arXiv 1706.08500) and FVD (arXiv 1812.01717) use it; covariances C are unbiased.
    Sets of few samples seem further apart than what they are drawn from. The trace of the root is exact; programs that
    take the root of a matrix in float32, or add to its diagonal, are up to a few thousandths away where samples are
    fewer than features.

    Raises:
        ValueError: not two matrices of one width, fewer than two samples in one, or a value that is not finite.
    """
    check_features(features_a, features_b)
    (mean_a, root_a), (mean_b, root_b) = _moments(features_a), _moments(features_b)
    # With C = R^T R the trace of (C_a C_b)^(1/2) is the sum of the singular values of R_a R_b^T: no square root of a
    # matrix, and covariances without full rank are no special case.
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(0.0, float(distance))


def check_features(features_a: Tensor, features_b: Tensor) -> None:
    """Raise ValueError for anything but two finite matrices of one width and at least two samples each."""
    for features in (features_a, features_b):
        if features.ndim != 2 or features.shape[1] != features_b.shape[-1]:
            raise ValueError(
                f"Features of shapes {tuple(features_a.shape)} and {tuple(features_b.shape)}: expected two matrices "
                "of samples with as many features each."
            )
        if len(features) < 2:
            raise ValueError(f"A set of {len(features)} samples has no covariance: give at least 2.")
        if not features.isfinite().all():
            raise ValueError("Some features are not finite.")


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a triangular root R of the covariance R^T R."""
    samples = features.double()
    mean = samples.mean(dim=0)
    return mean, torch.linalg.qr((samples - mean) / (len(samples) - 1) ** 0.5, mode="r").R
