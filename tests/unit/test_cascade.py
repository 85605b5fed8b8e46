"""Show-1's windows: what each of them is given, and where what it makes goes."""

import numpy as np
import pytest
import torch
from PIL import Image

from weft.kernels.sampling import cascade


def video(*shape, seed=0):
    return torch.randn(shape, generator=torch.manual_seed(seed))


def test_between_two_keyframes_as_released():
    first, last = video(2, 3, 4, 4), video(2, 3, 4, 4, seed=1)
    found = cascade.between(first, last)
    for frame in range(5):
        expected = (1 - frame / 4) * first + frame / 4 * last
        torch.testing.assert_close(found[:, :, frame], expected, rtol=0, atol=1e-6)
    zeros = cascade.between(first, last, blend=False)
    assert torch.equal(zeros[:, :, 0], first) and torch.equal(zeros[:, :, 4], last)
    assert not zeros[:, :, 1:4].any()


@pytest.mark.parametrize("count", [2, 3, 8])
def test_interpolation_windows(count):
    """Each window sees two original keyframes and the same noise; of a shared frame the later window's counts."""
    keys, noise = video(1, 3, count, 4, 4), video(1, 3, 5, 4, 4, seed=1)
    seen = []

    def sample(given_noise, given, mask):
        assert torch.equal(given_noise, noise)
        assert mask.shape == (1, 1, 5, 4, 4) and mask.mean((0, 1, 3, 4)).tolist() == [1, 0, 0, 0, 1]
        seen.append(given[:, :, [0, 4]])
        return torch.full_like(given, float(len(seen)))

    found = cascade.interpolate(keys, noise, sample)
    assert found.shape == (1, 3, 4 * (count - 1) + 1, 4, 4)
    for index, pair in enumerate(seen):
        assert torch.equal(pair, keys[:, :, index : index + 2])
    expected = [1.0 + min(frame // 4, count - 2) for frame in range(4 * (count - 1) + 1)]
    assert found[0, 0, :, 0, 0].tolist() == expected


def test_keyframes_may_be_kept_and_noised():
    keys, noise, augmentation = video(1, 3, 3, 2, 2), video(1, 3, 5, 2, 2, seed=1), video(1, 3, 3, 2, 2, seed=2)
    seen = []

    def sample(noise, given, mask):
        seen.append(given)
        return torch.zeros_like(given)

    found = cascade.interpolate(keys, noise, sample, blend=False, keep=True, level=250, augmentation=augmentation)
    assert torch.equal(found[:, :, ::4], keys) and not found[:, :, 1:4].any()
    expected = 0.845890**0.5 * keys + (1 - 0.845890) ** 0.5 * augmentation
    torch.testing.assert_close(seen[1][:, :, [0, 4]], expected[:, :, 1:], rtol=0, atol=1e-5)


def test_one_keyframe_is_refused():
    with pytest.raises(ValueError, match="Found 1 keyframe, expected at least 2"):
        cascade.interpolate(video(1, 3, 1, 2, 2), video(1, 3, 5, 2, 2), lambda *given: given[0])


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(29, [0, 7, 14, 21]), (8, [0]), (3, [0]), (9, [0, 1]), (15, [0, 7]), (30, [0, 7, 14, 21, 22])],
)
def test_windows_cover_every_frame(frames, starts):
    assert cascade.window_starts(frames) == starts


def test_enlarged_frames_keep_their_corners():
    small = video(2, 3, 2, 3, 5)
    large = cascade.enlarged(small)
    assert large.shape == (2, 3, 2, 12, 20)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    torch.testing.assert_close(large[..., corners[0], corners[1]], small[..., corners[0], corners[1]])
    # Bilinear: 11 steps of the large frame are 2 of the small one.
    torch.testing.assert_close(large[..., 1, 0], small[..., 0, 0] * 9 / 11 + small[..., 1, 0] * 2 / 11)


@pytest.mark.parametrize(("height", "width"), [(40, 72), (20, 32), (9, 7)])
def test_resized_like_the_release(height, width):
    """Cut to grey levels, then Pillow's bicubic, but for some roundings between its two passes."""
    images = torch.rand(2, 20, 32, 3, generator=torch.manual_seed(4))
    levels = (images * 255).to(torch.uint8).numpy()
    expected = np.stack([Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in levels])
    difference = (cascade.resized(images, width, height) * 255 - torch.from_numpy(expected)).abs()
    assert difference.max() < 1.01 and (difference > 0.5).float().mean() < 0.01


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("with_first", [True, False])
def test_super_resolution_windows(carry, with_first):
    small = video(1, 3, 15, 2, 2)
    noise, augmentation = video(1, 3, 8, 8, 8, seed=1), video(1, 3, 8, 8, 8, seed=2)
    first = video(1, 3, 8, 8, seed=3) if with_first else None
    seen = []

    def sample(given_noise, given):
        assert torch.equal(given_noise, noise)
        seen.append(given.clone())
        return torch.full_like(given, float(len(seen)))

    found = cascade.super_resolve(small, noise, augmentation, sample, level=250, first=first, carry=carry)
    assert found[0, 0, :, 0, 0].tolist() == [1.0] * 7 + [2.0] * 8, "a shared frame is the later window's"
    large = cascade.enlarged(small)
    for start, given in zip((0, 7), seen, strict=True):
        expected = 0.845890**0.5 * large[:, :, start : start + 8] + (1 - 0.845890) ** 0.5 * augmentation
        torch.testing.assert_close(given[:, :, 1:], expected[:, :, 1:], rtol=0, atol=1e-5)
        clean = first if start == 0 else torch.ones(1, 3, 8, 8) if carry else None
        if clean is None:
            torch.testing.assert_close(given[:, :, 0], expected[:, :, 0], rtol=0, atol=1e-5)
        else:
            assert torch.equal(given[:, :, 0], clean), "without noise"
