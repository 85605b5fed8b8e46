"""Video Metrics as a graph runs it: numbers in the report, a plot, and what it refuses."""

import pytest
import torch


@pytest.fixture
def video():
    """Six frames in which a light square moves by four pixels over a ground of noise, with an alpha channel."""
    frames = torch.rand(1, 24, 32, 4, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1, -1).clone() * 0.3
    for number, frame in enumerate(frames):
        frame[8:16, 4 * number : 4 * number + 8] = 0.9
    return frames


def report(text):
    """The means of a report by measure."""
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines()}


def test_a_video_alone(comfy, video):
    plot, text = comfy.run("WeftVideoMetrics", images=video)
    found = report(text)
    assert set(found) == {"motion", "consistency", "flicker"}
    steps = (video[1:, ..., :3] - video[:-1, ..., :3]).abs()
    assert found["motion"] == pytest.approx(255 * float(steps.mean()), rel=1e-3)
    assert 0.5 < found["consistency"] < 1
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and 0 <= float(plot.min()) and float(plot.max()) <= 1
    still = report(comfy.run("WeftVideoMetrics", images=video[:1].expand(4, -1, -1, -1))[1])
    assert still == {"motion": 0, "consistency": 1, "flicker": 0}


def test_beside_another(comfy, video):
    brighter = (video + 0.1).clamp(0, 1)
    plot, text = comfy.run("WeftVideoMetrics", images=brighter, reference=video)
    found = report(text)
    assert found["psnr_rgb"] == pytest.approx(20, abs=1e-2)
    # Brightness alone differs: of three planes one, so a third of the error.
    assert found["psnr_yuv"] == pytest.approx(20 + 4.771, abs=1e-2)
    assert 0.5 < found["ssim_rgb"] < 1
    alone, _ = comfy.run("WeftVideoMetrics", images=brighter)
    assert plot.shape[2] > alone.shape[2]
    same = report(comfy.run("WeftVideoMetrics", images=video, reference=video)[1])
    assert (same["psnr_rgb"], same["ssim_yuv"]) == (100, 1)


@pytest.mark.parametrize(
    ("frames", "reference", "message"),
    [
        ((1, 24, 32, 3), None, "A clip of 1 frame has no change: give at least 2 frames"),
        ((4, 24, 32, 3), (5, 24, 32, 3), "The video has 4 frames of 32 x 24, the reference 5 frames of 32 x 24"),
        ((4, 8, 32, 3), (4, 8, 32, 3), "Frames of 32 x 8 pixels: SSIM takes at least 11 x 11"),
    ],
)
def test_what_cannot_be_measured(comfy, frames, reference, message):
    other = {} if reference is None else {"reference": torch.zeros(reference)}
    with pytest.raises(ValueError, match=message):
        comfy.run("WeftVideoMetrics", images=torch.zeros(frames), **other)
