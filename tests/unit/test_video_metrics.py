"""PSNR, SSIM, consistency, motion and the inception score where they are known, and beside torchmetrics."""

import math

import pytest
import torch
import torchmetrics.functional.image as peers
from torchmetrics.image.inception import InceptionScore

from weft.kernels.analysis.classes import inception_score
from weft.kernels.analysis.consistency import caption_similarity, frame_consistency, pixel_consistency, pixel_motion
from weft.kernels.analysis.fidelity import psnr, ssim, to_yuv


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair():
    """Four smooth frames of 24 x 20, and the same with noise."""
    reference = torch.nn.functional.interpolate(drawn(4, 3, 6, 5), (24, 20), mode="bicubic").clamp(0, 1)
    noisy = (reference + 0.1 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    return noisy.movedim(1, -1), reference.movedim(1, -1)


def test_psnr_is_torchmetrics(pair):
    found = psnr(*pair)
    for frame, value in enumerate(found):
        expected = peers.peak_signal_noise_ratio(pair[0][frame], pair[1][frame], data_range=1.0)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_ssim_is_torchmetrics(pair):
    found = ssim(*pair)
    for frame, value in enumerate(found):
        pictures = [video[frame].movedim(-1, 0)[None] for video in pair]
        expected = peers.structural_similarity_index_measure(*pictures, data_range=1.0)
        # That one is in float32, where differences of squares lose digits.
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


def test_equal_and_constant_frames():
    plain = torch.full((2, 12, 12, 3), 0.25)
    assert psnr(plain, plain).tolist() == [100, 100] and ssim(plain, plain).tolist() == pytest.approx([1, 1])
    assert psnr(plain, plain + 0.1).tolist() == pytest.approx([20, 20], abs=1e-4)
    # Only the first factor differs from 1: (2ab + c) / (aa + bb + c).
    expected = (2 * 0.25 * 0.5 + 1e-4) / (0.25**2 + 0.5**2 + 1e-4)
    assert ssim(plain, plain + 0.25).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_yuv_of_known_colours():
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]])
    expected = [[0, 0.5, 0.5], [1, 0.5, 0.5], [0.299, 0.3313, 1], [0.114, 1, 0.4187]]
    assert to_yuv(colours).tolist() == pytest.approx([pytest.approx(row, abs=1e-4) for row in expected])
    # An error of blue alone is seen less in luma than in colour.
    frame = torch.full((1, 12, 12, 3), 0.5)
    blue = frame + torch.tensor([0, 0, 0.1])
    assert float(psnr(to_yuv(blue)[..., :1], to_yuv(frame)[..., :1])) == pytest.approx(
        -20 * math.log10(0.0114), abs=1e-2
    )


def test_frames_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 12, 12, 3\) and \(2, 12, 12, 3\): expected the same"):
        psnr(torch.zeros(1, 12, 12, 3), torch.zeros(2, 12, 12, 3))
    with pytest.raises(ValueError, match="Frames of 12 x 10 pixels: SSIM takes at least 11 x 11"):
        ssim(torch.zeros(1, 10, 12, 3), torch.zeros(1, 10, 12, 3))
    for measure, video in ((pixel_motion, torch.zeros(1, 4, 4, 3)), (frame_consistency, torch.zeros(1, 5))):
        with pytest.raises(ValueError, match="A clip of 1 frame has no change: give at least 2"):
            measure(video)


def test_consistency_of_features():
    features = torch.tensor([[1.0, 0], [2, 0], [0, 3], [1, 1]])
    assert frame_consistency(features).tolist() == pytest.approx([1, 0, 0.5**0.5])
    assert float(caption_similarity(features, torch.tensor([0.0, 5]))) == pytest.approx((0 + 0 + 1 + 0.5**0.5) / 4)


def test_consistency_of_pixels():
    """A brighter frame of more contrast is like itself, its negative is not, noise has nothing in common."""
    frame = drawn(32, 32, 3)
    video = torch.stack([frame, 0.4 * frame + 0.2, 1 - frame, drawn(32, 32, 3, seed=1)])
    found = pixel_consistency(video).tolist()
    assert found[:2] == pytest.approx([1, -1], abs=1e-6) and abs(found[2]) < 0.1
    plain = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1).expand(2, 8, 8, 3)
    assert pixel_consistency(plain).tolist() == [1]
    assert float(pixel_consistency(torch.stack([plain[0], drawn(8, 8, 3)]))) == 0


def test_motion_of_pixels():
    video = torch.tensor([0.0, 0.25, 0.125]).view(3, 1, 1, 1).expand(3, 8, 8, 3)
    assert pixel_motion(video).tolist() == pytest.approx([0.25, 0.125])
    assert pixel_motion(video.expand(2, 3, 8, 8, 3)).shape == (2, 2)


def test_inception_score_of_known_classes():
    sure = torch.eye(4).repeat(3, 1) * 100
    assert inception_score(sure) == pytest.approx(4)
    assert inception_score(sure[:1].expand(5, 4)) == pytest.approx(1)
    assert inception_score(torch.zeros(5, 4)) == pytest.approx(1)


def test_inception_score_is_torchmetrics():
    logits = torch.randn(60, 10, generator=torch.Generator().manual_seed(0)) * 2
    peer = InceptionScore(feature=torch.nn.Identity(), splits=1)
    peer.update(logits)
    assert inception_score(logits) == pytest.approx(float(peer.compute()[0]), rel=1e-5)
    with pytest.raises(ValueError, match=r"Logits of shape \(0, 3\)"):
        inception_score(torch.zeros(0, 3))
