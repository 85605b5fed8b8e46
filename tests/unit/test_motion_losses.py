"""HARIVO's losses against stored numbers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from weft.training.motion_losses import (
    ContrastiveProjection,
    FeatureQueue,
    attention_change,
    decoupled_contrastive,
    image_regularization,
    temporal_regularized_self_attention,
)

VECTORS = load_file(Path(__file__).resolve().parents[1] / "data" / "harivo" / "modules.safetensors")


def test_temporal_regularized_self_attention():
    changes = [attention_change(VECTORS[f"trs.map_{index}"]) for index in (1, 2, 3)]
    found = temporal_regularized_self_attention(changes)
    torch.testing.assert_close(found[None], VECTORS["trs.loss"], rtol=0, atol=1e-10)


def test_image_regularization_reaches_both_branches():
    video, image = (VECTORS[f"reg.{name}_pred"].requires_grad_() for name in ("video", "image"))
    found = image_regularization(video, image, VECTORS["reg.t"], 1000)
    torch.testing.assert_close(found[None], VECTORS["reg.loss"], rtol=0, atol=1e-10)
    found.backward()
    torch.testing.assert_close(video.grad, -image.grad)
    assert video.grad.abs().max() > 0


def test_contrastive_loss():
    projection = ContrastiveProjection(6, 2).double()
    names = {"conv.weight": "0.weight", **{f"layers.{i}.{part}": f"{2 * i + 3}.{part}" for i in range(3)
                                           for part in ("weight", "bias")}}  # fmt: skip
    projection.load_state_dict({ours: VECTORS[f"contrastive.weights.layers.{name}"] for ours, name in names.items()})
    z = projection(VECTORS["contrastive.h"])
    torch.testing.assert_close(z, VECTORS["contrastive.z"], rtol=0, atol=1e-10)
    queue = VECTORS["contrastive.queue"].requires_grad_()
    found = decoupled_contrastive(z[:2], z[2:], queue)
    torch.testing.assert_close(found[None], VECTORS["contrastive.loss"], rtol=0, atol=1e-10)
    found.backward()
    assert queue.grad is None and projection.conv.weight.grad.abs().max() > 0


def test_queue_keeps_the_newest():
    queue = FeatureQueue(4, 3)
    assert queue.newest().shape == (0, 3)
    rows = torch.randn(6, 3, generator=torch.manual_seed(0))
    for row in rows:
        queue.add(row[None])
    torch.testing.assert_close(queue.newest(), F.normalize(rows[2:], dim=1))
    queue.add(rows)
    torch.testing.assert_close(queue.newest(), F.normalize(rows[2:], dim=1))


@pytest.mark.parametrize("size", [1, 4])
def test_projection_of_the_paper(size):
    with torch.device("meta"):
        projection = ContrastiveProjection(1280, size)
    linear = 3 * (1280 * 1280 + 1280)
    assert sum(weight.numel() for weight in projection.parameters()) == 1280 * 1280 * size * size + linear
