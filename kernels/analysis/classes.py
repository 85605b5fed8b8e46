"""The inception score: whether each sample is surely of one class, and all samples are of many.

Shapes: N samples, K classes.
"""

import torch
from torch import Tensor


def inception_score(logits: Tensor) -> float:
    """exp of the mean divergence of p(class | sample) from p(class), of logits (N, K), in float64 (arXiv 1606.03498).

    1: all samples alike, or none of a class; K: each class equally often and never in doubt. Of how much data the
    classifier knows, the score says nothing: it compares with other scores of the same classifier only.

    Raises:
        ValueError: not a matrix of finite logits, or no sample.
    """
    if logits.ndim != 2 or not len(logits) or not logits.isfinite().all():
        raise ValueError(f"Logits of shape {tuple(logits.shape)}: expected finite ones of at least one sample, (N, K).")
    chances = logits.double().log_softmax(dim=1)
    together = torch.logsumexp(chances, dim=0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return float((chances.exp() * (chances - together)).sum(dim=1).mean().exp())
