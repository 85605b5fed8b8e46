"""HiGen's content cues: designed, measured, drawn; and curves over frames."""

import pytest
import torch

from weft.kernels.analysis.content import (
    Content,
    appearance_matrix,
    designed_content,
    fit_content,
    measured_appearance,
    measured_motion,
    thinned,
)
from weft.kernels.analysis.pictures import curve_picture, heat_picture, side_by_side, slice_picture
from weft.kernels.sampling.curves import Curve, parse_curve


@pytest.mark.parametrize(
    ("text", "frames", "values"),
    [
        ("500", (0, 7, 31), (500, 500, 500)),
        ("0: 300, 16: 600", (0, 4, 8, 16, 31), (300, 375, 450, 600, 600)),
        (" 16 :600,\n0:300 , ", (0, 8), (300, 450)),
        ("4: 10, 8: 20", (0, 4, 6, 100), (10, 10, 15, 20)),
        ("0: 1e2, 0.5: 50", (0, 0.25, 1), (100, 75, 50)),
    ],
)
def test_curves(text, frames, values):
    curve = parse_curve(text)
    assert [curve.at(frame) for frame in frames] == pytest.approx(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "curve is empty"),
        (" , ", "curve is empty"),
        ("fast", "Found 'fast' in the curve, expected numbers"),
        ("0: 300, 600", "Found '600' in the curve, expected a pair"),
        ("0: 300, 8", "Found '8' in the curve, expected a pair"),
        ("0: 300, a: 600", "Found 'a: 600' in the curve, expected numbers"),
        ("0: 300, -2: 600", "Found '-2: 600' in the curve: frames are counted from 0"),
        ("0: 300, 0: 600", "two values at frame 0"),
        ("0: nan", "expected numbers"),
        ("0: inf, 2: 3", "expected numbers"),
    ],
)
def test_curves_that_cannot_be_read_name_the_part(text, message):
    with pytest.raises(ValueError, match=message):
        parse_curve(text)


def test_designed_content_is_the_released_one_at_32_frames():
    """Eq. 4: 1 - factor * |i - j| / 31; 31 copies of the whole motion factor."""
    content = designed_content(32, parse_curve("499.9"), 0.75)
    frames = torch.arange(32.0)
    torch.testing.assert_close(content.appearance, 1 - 0.75 * (frames[:, None] - frames).abs() / 31, rtol=0, atol=1e-6)
    assert content.frames == 32 and content.motion.tolist() == [499.0] * 31


def test_other_lengths_span_the_same_change():
    matrix, long = appearance_matrix(32, 0.5), appearance_matrix(63, 0.5)
    assert long.shape == (63, 32)
    torch.testing.assert_close(long[::2], matrix)
    assert appearance_matrix(2, 0.5)[:, [0, -1]].tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert designed_content(5, parse_curve("0: 100, 2: 200"), 0).motion.tolist() == [100, 150, 200, 200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, Curve((0.0,), (5.0,)), 1.0), "frames is 1"),
        ((8, Curve((0.0, 4.0), (5.0, -5.0)), 1.0), "motion factor becomes -5"),
    ],
)
def test_impossible_content(arguments, message):
    with pytest.raises(ValueError, match=message):
        designed_content(*arguments)


def test_cues_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="Motion of 3 steps and appearance of shape"):
        Content(torch.zeros(3), torch.ones(5, 32))


def test_measured_motion_is_ten_times_the_distance_of_latents():
    """In the size of training; an RMS change of 0.354 per value is 300."""
    torch.manual_seed(0)
    latents = torch.randn(4, 4, 32, 56)
    expected = (10 * (latents[1:] - latents[:-1]).flatten(1).norm(dim=1)).trunc()
    assert torch.equal(measured_motion(latents), expected)
    assert measured_motion(torch.tensor([0.0, 0.35434]).view(2, 1, 1, 1).expand(2, 4, 32, 56)).tolist() == [299.0]
    # The same change of each value measures the same at another size.
    wide = measured_motion(torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 4, 64, 64))
    assert wide.tolist() == measured_motion(torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 4, 32, 56)).tolist()
    with pytest.raises(ValueError, match="clip of 1 frame has no motion"):
        measured_motion(latents[:1])


def test_measured_appearance():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.8, 0.6]])
    cosine = measured_appearance(features, "cosine")
    torch.testing.assert_close(cosine, torch.tensor([[1, 1, 0.8], [1, 1, 0.8], [0.8, 0.8, 1]]))
    torch.testing.assert_close(measured_appearance(features, "released"), 5 * cosine - 4, rtol=0, atol=1e-6)


def test_a_shorter_clip_is_stretched():
    """It moves as far, in more and smaller steps."""
    motion, appearance = torch.tensor([100.0, 300.0]), appearance_matrix(32, 1.0)[[0, 15, 31]][:, [0, 15, 31]]
    content = fit_content(motion, appearance, 5)
    assert content.motion.tolist() == [50, 83, 116, 150] and content.appearance.shape == (5, 32)
    torch.testing.assert_close(content.appearance[0, [0, -1]], appearance[0, [0, -1]])
    # A whole clip of the right length is taken as it is.
    whole = fit_content(torch.arange(31.0) + 0.0, appearance_matrix(32, 0.3), 32)
    torch.testing.assert_close(whole.appearance, appearance_matrix(32, 0.3))
    assert torch.equal(whole.motion, torch.arange(31.0))


def test_a_longer_clip_is_thinned():
    """From the first frame to the last, evenly; reading its motion at fewer places would miss what happens between."""
    assert thinned(63, 32) == list(range(0, 63, 2)) and thinned(9, 3) == [0, 4, 8] and thinned(4, 8) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="frames is 5: choose at least 2, and at least the 8 of the clip"):
        fit_content(torch.zeros(7), torch.ones(8, 8), 5)


def test_pictures():
    curve = curve_picture(torch.tensor([0.0, 10.0, 5.0]), 64)
    assert curve.shape == (64, 64, 3)
    line = (curve == curve.new_tensor((0.35, 0.75, 1.0))).all(-1)
    # The line rises from the lower margin to the upper one in the middle, then falls half way; no column is left out.
    assert line.any(0).all() and line[:, 0].nonzero().max() > 56
    assert line[:, 32].nonzero().min() < 8 and 24 < line[:, 63].nonzero().float().mean() < 40
    heat = heat_picture(torch.tensor([[0.0, 1.0], [0.5, 2.0]]), 0.0, 1.0, 64)
    assert heat.shape == (64, 64, 3)
    assert heat[0, 0].sum() < heat[63, 0].sum() < heat[0, 63].sum() == heat[63, 63].sum()
    frames = torch.zeros(3, 5, 4, 3)
    frames[1, 2] = 1.0
    rows = slice_picture(frames, 60)[:, 0, 0]
    assert rows[:20].sum() == 0 and rows[20:40].sum() == 20 and rows[40:].sum() == 0
    assert side_by_side([heat, curve, heat], gap=4).shape == (64, 200, 3)
