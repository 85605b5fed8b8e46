"""The tracker reads true clips, compressed and blurred ones, and is not fooled by wrong or empty videos."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from weft.training.data.captions import parse_caption
from weft.training.data.moving_shapes import Clip, MovingShapes, MovingShapesConfig, ObjectTrack, animate, render
from weft.training.data.tracker import score, track
from weft.training.data.video_files import read_video, write_video

CONFIG = MovingShapesConfig(seed=11)
ONE = "a red circle moves slowly left to right over a dark background"
TWO = "a blue square moves right to left and a yellow triangle moves quickly top to bottom over a light background"


def true_clip(caption, seed=0):
    return render(animate(parse_caption(caption), np.random.default_rng(seed), CONFIG))


def mixed_clips(count):
    """Half of the clips of each split."""
    for split in ("train", "held_out"):
        data = MovingShapes(CONFIG, split)
        yield from (data.clip(index) for index in range(count // 2))


def accuracies(clips, change):
    scores = [score(change(render(clip)), clip.spec) for clip in clips]
    return {
        name: float(np.mean([getattr(each, name) for each in scores]))
        for name in ("colour", "shape", "direction", "speed", "background")
    }


def assert_all_read(found):
    assert found["colour"] == found["direction"] == found["speed"] == found["background"] == 1, found
    assert found["shape"] >= 0.99, found


def test_reads_a_thousand_true_clips():
    assert_all_read(accuracies(mixed_clips(1000), lambda frames: frames))


def test_reads_a_thousand_clips_from_compressed_files(tmp_path):
    def compress(frames):
        write_video(tmp_path / "clip.mp4", frames, CONFIG.fps, crf=23)
        return read_video(tmp_path / "clip.mp4")[0]

    assert_all_read(accuracies(mixed_clips(1000), compress))


def test_reads_clips_that_fade_and_accelerate():
    data = MovingShapes(MovingShapesConfig(fade=0.69, acceleration=0.6, two_objects=0.2))
    found = accuracies((data.clip(index) for index in range(300)), lambda frames: frames)
    assert_all_read(found)


@pytest.mark.parametrize("style", ["shaded", "underlit"])
def test_reads_every_style(style):
    data = MovingShapes(MovingShapesConfig(styles=(style,), two_objects=0.25))
    assert_all_read(accuracies((data.clip(index) for index in range(100)), lambda frames: frames))


def test_reads_soft_noisy_and_flickering_clips():
    """What a small video model adds: soft edges (sigma 1.5 pixels), noise, flicker and washed-out, trailing objects."""
    rng = np.random.default_rng(0)
    kernel = np.exp(-((np.arange(64)[:, None] - np.arange(64)) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum(axis=1, keepdims=True)

    def degrade(frames):
        soft = np.einsum("yh,thwc,xw->tyxc", kernel, frames.astype(float), kernel, optimize=True)
        trailing = 0.8 * soft + 0.2 * np.roll(soft, 1, axis=0)
        grey = np.median(trailing)
        noisy = grey + 0.8 * (trailing - grey) + rng.normal(0, 8, soft.shape) + rng.normal(0, 5, (len(soft), 1, 1, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    assert_all_read(accuracies(mixed_clips(200), degrade))


@pytest.mark.parametrize("config", [replace(CONFIG, size=128), replace(CONFIG, size=48, frames=8)])
def test_reads_other_sizes(config):
    data = MovingShapes(config)
    assert_all_read(accuracies((data.clip(index) for index in range(60)), lambda frames: frames))


def test_centres_and_areas_are_the_true_ones():
    data = MovingShapes(replace(CONFIG, two_objects=0.0))
    for index in range(50):
        clip = data.clip(index)
        (found,) = track(render(clip)).objects
        np.testing.assert_allclose(found.centres, clip.objects[0].centres, atol=0.35)  # a third of a pixel
        shape, radius = clip.objects[0].shape, clip.objects[0].radii[0]
        area = {"circle": np.pi, "square": 1.8**2, "triangle": 0.49 * 27**0.5}[shape] * radius**2
        np.testing.assert_allclose(found.areas, area, rtol=0.2)  # weak edge pixels do not count


@pytest.mark.parametrize(
    ("caption", "wrong", "parts"),
    [
        (ONE, ONE.replace("red", "magenta"), {"colour"}),
        (ONE, ONE.replace("circle", "square"), {"shape"}),
        (ONE, ONE.replace("left to right", "right to left"), {"direction"}),
        (ONE, ONE.replace("left to right", "top to bottom"), {"direction"}),
        (ONE, ONE.replace("slowly ", ""), {"speed"}),
        (ONE, ONE.replace("dark", "grey"), {"background"}),
        (TWO, TWO.replace("blue", "cyan"), {"colour"}),
        (TWO, TWO.replace("triangle", "circle"), {"shape"}),
        (TWO, TWO.replace("right to left", "bottom to top"), {"direction"}),
        (TWO, TWO.replace("square", "CIRCLE").replace("yellow", "green"), {"colour", "shape"}),
    ],
)
def test_a_wrong_caption_fails_in_the_part_that_is_wrong(caption, wrong, parts):
    for seed in range(5):
        result = score(true_clip(caption, seed), wrong)
        failed = {name for name in ("colour", "shape", "direction", "speed", "background") if not getattr(result, name)}
        assert failed == parts


def test_fractions_say_how_many_objects_are_right():
    result = score(true_clip(TWO), TWO.replace("triangle", "circle").replace("blue", "green"))
    assert (result.colour_fraction, result.shape_fraction, result.direction_fraction) == (0.5, 0.5, 1.0)


def test_a_missing_or_an_additional_object_is_not_the_captioned_scene():
    only_blue = "a blue square moves right to left over a light background"
    missing = score(true_clip(only_blue), TWO)
    assert not (missing.colour or missing.shape or missing.direction)
    assert (missing.colour_fraction, missing.shape_fraction, missing.direction_fraction) == (0.5, 0.5, 0.5)
    additional = score(true_clip(TWO), only_blue)
    assert not additional.colour
    assert additional.shape and additional.direction


def test_a_second_object_of_the_same_colour_is_seen():
    clip = animate(parse_caption(ONE), np.random.default_rng(0), CONFIG)
    twin = replace(clip.objects[0], centres=(clip.objects[0].centres + 32) % 64)
    frames = render(Clip(clip.spec, (*clip.objects, twin), clip.backgrounds, clip.size))
    assert [found.colour for found in track(frames).objects] == ["red", "red"]
    assert not score(frames, ONE).colour


def test_a_faint_ghost_is_no_object():
    frames = true_clip(ONE).astype(float)
    ghost = frames[:, ::-1]
    mixed = np.maximum(frames, 0.2 * (ghost - frames[0, 0, 0]) + frames[0, 0, 0]).astype(np.uint8)
    result = score(mixed, ONE)
    assert result.colour and result.shape and result.direction


def still_clip():
    centres, radii = np.full((16, 2), 30.0), np.full(16, 9.0)
    red = ObjectTrack("circle", centres, radii, np.tile([0.9, 0.05, 0.05], (16, 1)))
    return render(Clip(parse_caption(ONE), (red,), np.full((16, 3), 0.1), 64))


def test_an_object_that_stands_still_has_no_direction():
    result = score(still_clip(), ONE)
    assert result.colour and result.shape and result.background
    assert not result.direction and not result.speed


def test_a_diagonal_path_and_a_return_have_no_direction():
    time = np.linspace(0, 1, 16)[:, None]
    diagonal = [16, 16] + 30 * time * [1, 1]
    there_and_back = [16, 32] + 30 * (1 - np.abs(2 * time - 1)) * [1, 0]
    for centres in (diagonal, there_and_back):
        red = ObjectTrack("circle", centres, np.full(16, 9.0), np.tile([0.9, 0.05, 0.05], (16, 1)))
        frames = render(Clip(parse_caption(ONE), (red,), np.full((16, 3), 0.1), 64))
        assert [found.direction for found in track(frames).objects] == [None]


def test_an_object_seen_in_a_part_of_the_frames_is_read_from_these():
    clip = animate(parse_caption(ONE.replace("slowly", "quickly")), np.random.default_rng(0), CONFIG)
    frames = render(clip)
    frames[6:] = frames[0, 0, 0]
    (found,) = track(frames).objects
    assert (found.shape, found.direction) == ("circle", "left to right")
    frames[1:] = frames[0, 0, 0]
    frames[0, 10:50, 10:50] = [230, 10, 10]
    (found,) = track(frames).objects
    assert (found.shape, found.direction) == ("square", None)


def test_an_object_that_is_none_of_the_shapes_has_no_shape():
    clip = animate(parse_caption(ONE), np.random.default_rng(0), CONFIG)
    hole = replace(clip.objects[0], radii=clip.objects[0].radii * 0.6, colours=clip.backgrounds)
    frames = render(Clip(clip.spec, (*clip.objects, hole), clip.backgrounds, clip.size))
    result = score(frames, ONE)
    assert result.colour and result.direction and not result.shape


@pytest.mark.parametrize("caption", [ONE, TWO])
@pytest.mark.parametrize("frames", [16, 1])
def test_empty_and_noisy_videos_score_nothing(caption, frames):
    noise = np.random.default_rng(0).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
    assert not any(astuple(score(noise, caption))[:5])
    for level in (0, 255):
        result = score(np.full((frames, 64, 64, 3), level, np.uint8), caption)
        assert not (result.colour or result.shape or result.direction or result.speed)
        assert result.colour_fraction == result.shape_fraction == result.direction_fraction == 0
    coloured = np.zeros((frames, 64, 64, 3), np.uint8)
    coloured[..., 0] = 220
    assert not any(astuple(score(coloured, caption))[:5])


def test_no_frames_and_floats_are_refused():
    for frames in (np.zeros((0, 64, 64, 3), np.uint8), np.zeros((4, 64, 64, 3), np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            track(frames)


def test_score_reads_files_and_names_bad_captions(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, true_clip(TWO), 8)
    assert all(astuple(score(read_video(path)[0], TWO)))
    with pytest.raises(ValueError, match="found 'purple'"):
        score(read_video(path)[0], "a purple circle moves left to right over a dark background")
