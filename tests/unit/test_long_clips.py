"""Long clips of Moving Shapes: what their parts say is what is seen."""

from dataclasses import replace

import numpy as np
import pytest

from weft.training.data.captions import parse_caption
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig, render, write_dataset
from weft.training.data.paths import REACH, TRAVEL, UNIT_STEPS
from weft.training.data.tracker import score, track

CONFIG = MovingShapesConfig(seed=5, frames=64, part=16, two_objects=0.0)
STEPS = np.array(list(UNIT_STEPS.values()))


def clips(config, count=40):
    data = MovingShapes(config)
    return [data.clip(index) for index in range(count)]


def test_paths_turn_at_every_part_and_stay_inside():
    for clip in clips(replace(CONFIG, two_objects=0.5)):
        assert len(clip.parts) == 4 and clip.parts[0] == clip.spec
        for index, track_ in enumerate(clip.objects):
            centres, ways = track_.centres, [part.objects[index].direction for part in clip.parts]
            assert centres.shape == (64, 2)
            assert all(before != after for before, after in zip(ways, ways[1:], strict=False))
            margin = REACH * track_.radii[0] - 1e-6
            assert centres.min() >= margin and centres.max() <= 64 - margin
            steps = np.diff(centres, axis=0)
            for part, way in enumerate(ways):
                inside = steps[max(0, 16 * part - 1) : 16 * part + 15]
                travel = (inside @ UNIT_STEPS[way]).sum() / 64
                least, most = TRAVEL[clip.spec.objects[index].speed]
                assert least - 1e-6 <= travel <= most + 1e-6
                assert np.abs(inside @ UNIT_STEPS[way][::-1]).max() < 1e-9


def test_each_part_shows_what_its_caption_says():
    """Read back from the frames; a corner may be cut by what a frame shows, no more than one part in fifty is lost."""
    found = []
    for clip in clips(CONFIG, 25):
        frames, said = render(clip), clip.captions()
        assert [frame for frame, _ in said] == [0, 16, 32, 48] and said[0][1] == clip.spec.caption()
        for frame, caption in said:
            result = score(frames[frame : frame + 16], caption)
            found.append(result.colour and result.shape and result.direction and result.speed and result.background)
    assert len(found) == 100 and np.mean(found) >= 0.98


def test_objects_leave_and_come_back():
    """Gone at the end of a part, back where they were at the end of the next; while they are seen, captions hold."""
    gone = parts = right = 0
    for clip in clips(replace(CONFIG, leaving=0.5)):
        centres, radius = clip.objects[0].centres, clip.objects[0].radii[0]
        frames = render(clip)
        outside = (centres < -radius).any(1) | (centres > 64 + radius).any(1)
        for part in range(1, 4):
            end = 16 * part + 15
            if not outside[end]:
                continue
            gone += 1
            assert part < 3 and not outside[end + 16]
            np.testing.assert_allclose(centres[end + 16], centres[end - 16], atol=1e-6)
            assert not track(frames[end : end + 1]).objects, "nothing is left in the frame"
        for frame, caption in clip.captions():
            result = score(frames[frame : frame + 16], caption)
            parts, right = parts + 1, right + (result.colour and result.direction and result.background)
    assert gone >= 20 and right / parts >= 0.95


def test_shades_change_slowly_and_keep_their_colour():
    config = replace(CONFIG, shade_change=True)
    changes = []
    for clip in clips(config, 12):
        colours = clip.objects[0].colours
        steps = np.abs(np.diff(colours, axis=0)).max()
        changes.append(np.abs(colours[-1] - colours[0]).max())
        assert steps < 0.01
        frames = render(clip)
        for frame, caption in clip.captions():
            assert score(frames[frame : frame + 16], caption).colour
    assert max(changes) > 0.1


def test_two_objects_hardly_touch():
    both = clips(replace(CONFIG, two_objects=1.0), 20)
    touching = []
    for clip in both:
        one, other = clip.objects
        distance = np.linalg.norm(one.centres - other.centres, axis=-1)
        touching.append((distance < REACH * (one.radii[0] + other.radii[0])).mean())
    assert np.median(touching) <= 1 / 8 and max(touching) < 0.6


def test_clips_without_parts_are_what_they_were():
    """The new settings draw nothing where they are off."""
    plain = MovingShapes(MovingShapesConfig(seed=5))[0]
    assert plain[0].shape == (16, 64, 64, 3) and MovingShapes(MovingShapesConfig(seed=5)).clip(0).parts == ()
    clip = MovingShapes(MovingShapesConfig(seed=5)).clip(0)
    assert clip.captions() == [(0, clip.spec.caption())]


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="part: found 10, expected a divisor of frames = 64 from 2, or 0"):
        replace(CONFIG, part=10)
    with pytest.raises(ValueError, match="leaving: found 0.5 with part = 0"):
        replace(CONFIG, part=0, leaving=0.5)


def test_written_clips_say_what_their_parts_show(tmp_path):
    import json

    write_dataset(tmp_path, 1, CONFIG)
    line = json.loads((tmp_path / "captions.jsonl").read_text())
    assert [frame for frame, _ in line["captions"]] == [0, 16, 32, 48]
    assert all(parse_caption(caption) for _, caption in line["captions"])
