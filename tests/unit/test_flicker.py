"""Flicker of clips for which it is known."""

import pytest
import torch

from weft.kernels.analysis.flicker import flicker


def moving_edge(frames=12, size=24, speed=2.0, softness=3.0):
    """A soft bright edge that moves over a dark ground, (T, H, W, 3) in 0..1."""
    places = torch.arange(size) - speed * torch.arange(frames)[:, None]
    row = torch.sigmoid(-places / softness)
    return row[:, None, :, None].expand(frames, size, size, 3).contiguous()


@pytest.mark.parametrize("softness", [1e-3, 3.0])
@pytest.mark.parametrize("speed", [0.5, 2.0, 9.0])
def test_smooth_motion_has_none(speed, softness):
    assert flicker(moving_edge(speed=speed, softness=softness)) == 0


def test_fades_and_cuts_have_none():
    fade = torch.linspace(0, 1, 10).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    cut = torch.rand(2, 4, 4, 3, generator=torch.manual_seed(0)).repeat_interleave(5, dim=0)
    assert flicker(fade) == 0 and flicker(cut) == 0


def test_a_still_that_lies_in_memory_once_has_none():
    """Frames that share their memory, as expanded ones do: torch's median would be wrong on them."""
    assert flicker(torch.rand(1, 4, 4, 3, generator=torch.manual_seed(0)).expand(5, -1, -1, -1)) == 0


def test_alternating_brightness_is_counted_in_full():
    """Each inner frame lies beyond both of its neighbours by the whole difference."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(6).view(-1, 1, 1, 1)
    assert float(flicker(torch.full((12, 8, 8, 3), 0.5) + 0.05 * sign)) == pytest.approx(0.1, abs=1e-12)


def test_one_bright_frame_is_counted_once():
    clip = torch.zeros(10, 4, 4, 3, dtype=torch.float64)
    clip[4] = 0.8
    assert float(flicker(clip)) == pytest.approx(0.8 / 8, abs=1e-12)


def test_jitter_on_motion_grows_with_its_size():
    clip = moving_edge()
    noise = torch.randn(12, 1, 1, 1, generator=torch.manual_seed(0))
    found = [float(flicker(clip + size * noise)) for size in (0.0, 0.02, 0.04, 0.08)]
    assert found[0] == 0 and found == sorted(set(found))
    # Where nothing moves, the jitter is all there is; the edge hides a part of it.
    still = float(flicker((0.08 * noise).expand(12, 4, 4, 3)))
    assert 0.4 * still < found[3] <= still


def test_clips_of_a_batch_are_measured_alone():
    clips = torch.rand(3, 6, 4, 4, 3, generator=torch.manual_seed(1))
    torch.testing.assert_close(flicker(clips), torch.stack([flicker(clip) for clip in clips]))


def test_two_frames_are_refused():
    with pytest.raises(ValueError, match="A clip of 2 frames has no flicker: give at least 3"):
        flicker(torch.zeros(2, 4, 4, 3))
