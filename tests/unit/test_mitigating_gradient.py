"""Mitigating-gradient guidance against the vectors of its definition."""

import json
from pathlib import Path

import pytest
import torch

from weft.kernels.sampling.mitigating_gradient import mitigated

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "harivo" / "mg_vectors.json").read_text())
FORMS = {"algorithm1": "algorithm", "exact": "exact"}


def videos_of(values: list, case: dict) -> torch.Tensor:
    """A vector's array as (B, F, ...) in float64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.transpose(1, 2) if case["layout"] == "BCTHW" else tensor.unflatten(0, (-1, case["video_length"]))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_every_vector(case):
    denoised = videos_of(case["x0_hat"], case)
    found = mitigated(
        denoised,
        case["alpha"],
        case["omega"],
        form=FORMS[case["mode"]],
        per_element=case["scale_mode"] == "per_element",
    )
    expected = videos_of(case["expected"]["x0_new"], case)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", VECTORS["prediction_space"], ids=lambda case: case["name"])
def test_predictions_in_any_space(case):
    """Flow models begin at pure noise, where the ratio is infinite: they are guided as at the largest one."""
    denoised = videos_of(case["expected"]["x0_hat"], case)
    ratio = float("inf") if case.get("sigma") == 1.0 else case["omega"]
    found = mitigated(denoised, case["alpha"], ratio, form=FORMS[case["mode"]])
    torch.testing.assert_close(found, videos_of(case["expected"]["x0_new"], case), rtol=0, atol=1e-10)


def test_videos_of_a_batch_have_their_own_noise_and_median():
    torch.manual_seed(0)
    denoised = torch.randn(3, 6, 2, 4, 4, dtype=torch.float64) * torch.tensor([0.01, 1.0, 5.0]).view(3, 1, 1, 1, 1)
    ratios = torch.tensor([0.5, 2.0, 90.0])
    together = mitigated(denoised, 40.0, ratios)
    for index in range(3):
        alone = mitigated(denoised[index : index + 1], 40.0, float(ratios[index]))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-12)


def test_half_precision_does_not_overflow():
    torch.manual_seed(0)
    video = torch.randn(1, 4, 16, 64, 64) * 3
    found = mitigated(video.half(), 40.0, 10.0, per_element=True)
    assert found.dtype == torch.float16 and found.isfinite().all()
    torch.testing.assert_close(found.float(), mitigated(video, 40.0, 10.0, per_element=True), rtol=2e-3, atol=2e-2)


def test_jitter_is_smoothed_and_a_cut_is_not():
    torch.manual_seed(0)
    jitter = 0.1 * torch.randn(1, 24, 4, 32, 32)
    cut = jitter.clone()
    cut[:, 12:] += 5.0
    for video, change in ((jitter, 0.5), (cut, 0.5)):
        smooth = mitigated(video, 40.0, 2.0)
        before, after = (each.diff(dim=1).flatten(2).norm(dim=2)[0] for each in (video, smooth))
        near = torch.arange(23) != 11
        assert (after[near] < before[near]).float().mean() > change
    assert after[11] == pytest.approx(float(before[11]), rel=0.05)
