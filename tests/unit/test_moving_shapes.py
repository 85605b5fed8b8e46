"""Moving Shapes: captions, splits, true trajectories, rendering and files."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from weft.kernels.networks.caption_encoder import terms_of
from weft.training.data.captions import (
    COLUMNS,
    DIRECTIONS,
    ROWS,
    ClipSpec,
    ShapeSpec,
    caption_terms,
    parse_caption,
    single_object_specs,
    split_of,
)
from weft.training.data.moving_shapes import (
    HUES,
    Clip,
    MovingShapes,
    MovingShapesConfig,
    ObjectTrack,
    held_out_captions,
    render,
    sample_spec,
    write_dataset,
)
from weft.training.data.paths import TRAVEL, UNIT_STEPS
from weft.training.data.video_files import read_video, write_video

CONFIG = MovingShapesConfig(seed=3)
PAIRS = replace(CONFIG, two_objects=1.0)
RED_CIRCLE = ClipSpec((ShapeSpec("red", "circle", "left to right"),), "dark")


def test_captions_read_as_english():
    red = ShapeSpec("red", "circle", "left to right")
    blue = ShapeSpec("blue", "square", "bottom to top", "slowly")
    assert ClipSpec((red,), "dark").caption() == "a red circle moves left to right over a dark background"
    assert (
        ClipSpec((red, blue), "grey").caption()
        == "a red circle moves left to right and a blue square moves slowly bottom to top over a grey background"
    )


def test_every_caption_is_read_back():
    rng = np.random.default_rng(0)
    singles = list(single_object_specs())
    assert len({spec.caption() for spec in singles}) == 6 * 3 * 4 * 3 * 3
    specs = [*singles, *(sample_spec(rng, PAIRS) for _ in range(300))]
    assert all(parse_caption(spec.caption()) == spec for spec in specs)
    assert parse_caption("A red circle moves LEFT to right, over a dark background.") == RED_CIRCLE


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a pink circle moves left to right over a dark background", "found 'pink', expected red or yellow"),
        ("a red dog moves left to right over a dark background", "found 'dog', expected circle or square"),
        ("a red circle moves left to top over a dark background", "found 'left', expected left to right or"),
        ("a red circle moves left to right", "found the end of the caption, expected over"),
        ("a red circle moves left to right over a dark background please", "found 'please', expected the end"),
        ("", "found the end of the caption, expected a"),
        (
            "a red circle moves left to right and a red square moves left to right over a dark background",
            "both objects .* are red",
        ),
    ],
)
def test_a_caption_outside_the_grammar_names_the_word(caption, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(caption)


def test_vocabulary_is_exactly_the_terms_in_use():
    rng = np.random.default_rng(1)
    specs = [*single_object_specs(), *(sample_spec(rng, PAIRS) for _ in range(5))]
    used = {term for spec in specs for term in terms_of(spec.caption(), caption_terms())}
    assert caption_terms() == tuple(sorted(used))
    assert {term for term in used if " " in term} == set(DIRECTIONS)


def test_pictures_are_described_by_where_things_are():
    data = MovingShapes(MovingShapesConfig(frames=8, two_objects=0.5))
    used, bounds = set(), {"top": (1, 0), "bottom": (1, 1), "left": (0, 0), "right": (0, 1)}
    for index in range(200):
        clip, captions = data.clip(index), data.picture_captions(index)
        assert captions == data.picture_captions(index) and len(captions) == 8
        for frame, caption in enumerate(captions):
            used |= set(terms_of(caption, caption_terms(places=True)))
            assert caption.endswith(f" over a {clip.spec.background} background")
            objects = caption.split(" over ")[0].split(" and ")
            for shape, track, text in zip(clip.spec.objects, clip.objects, objects, strict=True):
                assert text.startswith(f"a {shape.colour} {shape.shape}")
                for word in text.split(" at the ")[-1].split() if " at the " in text else ():
                    axis, upper = bounds.get(word, (int(word == "middle"), None))
                    offset = track.centres[frame, axis] / 64 - 0.5
                    assert (abs(offset) <= 0.08) if upper is None else (offset > 0.08 if upper else offset < -0.08)
    assert {"at the", *ROWS, *COLUMNS} <= used
    assert not used & {"moves", *DIRECTIONS}


def test_held_out_captions_never_appear_in_training():
    rng = np.random.default_rng(2)
    held_out = held_out_captions(256, seed=0)
    train = {sample_spec(rng, CONFIG).caption() for _ in range(5000)}
    assert not train & set(held_out)
    assert not train & {sample_spec(rng, CONFIG, "held_out").caption() for _ in range(1000)}
    for caption in held_out:
        spec = parse_caption(caption)
        assert split_of(replace(spec, objects=spec.objects[::-1])) == "held_out"


def test_every_combination_of_colour_shape_and_direction_is_trained():
    trained = [spec.objects[0] for spec in single_object_specs() if split_of(spec) == "train"]
    assert len(trained) == 648 - 225
    combinations = {(shape.colour, shape.shape, shape.direction) for shape in trained}
    assert len(combinations) == 6 * 3 * 4


def test_held_out_captions_are_distinct_and_in_proportion():
    captions = held_out_captions(256, seed=0)
    assert captions == held_out_captions(256, seed=0) != held_out_captions(256, seed=1)
    assert len(set(captions)) == 256
    assert sum(" and " in caption for caption in captions) == round(0.2 * 256)
    with pytest.raises(ValueError, match="300 captions need 240 with one object, but 225 are held out"):
        held_out_captions(300, seed=0)


def test_clips_depend_on_seed_split_and_index_only():
    frames, caption = MovingShapes(CONFIG)[5]
    again, same = MovingShapes(CONFIG)[5]
    assert caption == same and np.array_equal(frames, again)
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
    for other in (
        MovingShapes(CONFIG)[6],
        MovingShapes(CONFIG, "held_out")[5],
        MovingShapes(replace(CONFIG, seed=4))[5],
    ):
        assert not np.array_equal(frames, other[0])
    with pytest.raises(IndexError):
        MovingShapes(replace(CONFIG, count=3))[3]
    assert len(list(MovingShapes(replace(CONFIG, count=3)))) == 3


def test_a_seed_means_the_same_clips_for_good():
    """Trained models name the seed of their data set, so what it stands for must not change."""
    clip = MovingShapes(MovingShapesConfig(seed=0)).clip(7)
    assert clip.spec.caption() == (
        "a yellow circle moves quickly bottom to top and a cyan square moves quickly top to bottom"
        " over a grey background"
    )
    np.testing.assert_allclose(clip.objects[0].centres[0], [16.330, 49.265], atol=1e-3)
    np.testing.assert_allclose(clip.objects[1].centres[0], [42.485, 12.588], atol=1e-3)


def test_other_sizes_and_lengths():
    frames, _ = MovingShapes(MovingShapesConfig(size=48, frames=9))[0]
    assert frames.shape == (9, 48, 48, 3)


def test_objects_stay_inside_and_travel_as_captioned():
    data = MovingShapes(replace(CONFIG, two_objects=0.5))
    for index in range(300):
        clip = data.clip(index)
        for shape, track in zip(clip.spec.objects, clip.objects, strict=True):
            assert (track.centres - track.radii[:, None]).min() > 0
            assert (track.centres + track.radii[:, None]).max() < 64
            step = np.array(UNIT_STEPS[shape.direction])
            travelled = track.centres[-1] - track.centres[0]
            low, high = TRAVEL[shape.speed]
            assert low * 64 <= travelled @ step <= high * 64
            assert travelled @ step[::-1] == pytest.approx(0, abs=1e-9)
    assert min(low for low, _ in TRAVEL.values()) * 64 >= 8


def test_two_objects_are_of_different_colours_and_hardly_touch():
    data = MovingShapes(PAIRS)
    touching = []
    for index in range(300):
        clip = data.clip(index)
        first, second = clip.objects
        assert clip.spec.objects[0].colour != clip.spec.objects[1].colour
        gap = np.linalg.norm(first.centres - second.centres, axis=1) - first.radii - second.radii
        touching.append(int((gap < 0).sum()))
    assert max(touching) <= 3
    assert sum(count > 0 for count in touching) <= 0.1 * len(touching)


def test_a_fifth_of_the_clips_has_two_objects():
    data = MovingShapes(CONFIG)
    share = np.mean([len(data.clip(index).objects) == 2 for index in range(2000)])
    assert share == pytest.approx(0.2, abs=0.03)  # three standard deviations of 2,000 draws


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 1.8**2), ("triangle", 0.49 * 27**0.5)])
def test_render_puts_the_object_where_the_parameters_say(shape, area):
    """Centre, area, colours and background change from frame to frame, so each is read from its own row."""
    centres = np.array([[20.0, 30.3], [33.7, 40.0], [41.2, 22.6]])
    radii = np.array([7.0, 9.0, 12.0])
    colours = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.4, 1.0]])
    backgrounds = np.array([[0.0] * 3, [0.2] * 3, [0.6] * 3])  # exact in 8 bits
    clip = Clip(RED_CIRCLE, (ObjectTrack(shape, centres, radii, colours),), backgrounds, 64)
    frames = render(clip) / 255
    for frame, centre, radius, colour, background in zip(frames, centres, radii, colours, backgrounds, strict=True):
        x, y = np.floor(centre).astype(int)
        np.testing.assert_allclose(frame[y, x], colour, atol=0.5 / 255)
        np.testing.assert_allclose(frame[0, 0], background, atol=0.5 / 255)
        channel = int(np.abs(colour - background).argmax())
        cover = (frame[..., channel] - background[channel]) / (colour[channel] - background[channel])
        grid = np.arange(64) + 0.5
        found = np.array([cover.sum(axis=0) @ grid, cover.sum(axis=1) @ grid]) / cover.sum()
        # Edges are smoothed over one pixel by distance, exact for straight axis-parallel edges only.
        np.testing.assert_allclose(found, centre, atol=0.1)
        assert cover.sum() == pytest.approx(area * radius**2, rel=0.03)


def test_later_objects_are_in_front():
    still = np.full((1, 2), 32.0)
    tracks = [
        ObjectTrack("square", still, np.array([radius]), np.array([colour]))
        for radius, colour in ((12.0, [1.0, 0.0, 0.0]), (6.0, [0.0, 0.0, 1.0]))
    ]
    frame = render(Clip(RED_CIRCLE, tuple(tracks), np.zeros((1, 3)), 64))[0]
    assert frame[32, 32].tolist() == [0, 0, 255]
    assert frame[32, 40].tolist() == [255, 0, 0]


def test_colours_are_sixty_degrees_apart():
    hues = sorted(HUES.values())
    np.testing.assert_allclose(np.diff(hues), 1 / 6)


def test_write_dataset(tmp_path):
    write_dataset(tmp_path / "set", 3, CONFIG, "held_out")
    lines = [json.loads(line) for line in (tmp_path / "set" / "captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    for index, line in enumerate(lines):
        frames, caption = MovingShapes(CONFIG, "held_out")[index]
        assert line["caption"] == caption
        assert line["spec"]["objects"][0]["colour"] == parse_caption(caption).objects[0].colour
        decoded, fps = read_video(tmp_path / "set" / line["file"])
        assert fps == 8
        assert decoded.shape == frames.shape
        # Colour is stored at half resolution, so only edges differ: a mean of a few grey levels.
        assert np.abs(decoded.astype(int) - frames).mean() < 4


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 31, 32, 3), np.uint8), "31 x 32.*even"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32 .*expected uint8"),
        (np.zeros((32, 32, 3), np.uint8), "expected uint8 \\(T, H, W, 3\\)"),
    ],
)
def test_write_video_refuses_what_it_cannot_store(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", frames, 8)


def test_read_video_refuses_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("no video")
    with pytest.raises(ValueError, match="clip.mp4"):
        read_video(path)


def test_paths_cross_the_middle_of_the_frame():
    """Along their direction; beside it they are anywhere, so that the caption leaves something open."""
    beside = []
    for index in range(200):
        clip = MovingShapes(CONFIG).clip(index)
        for shape, track in zip(clip.spec.objects, clip.objects, strict=True):
            axis = 0 if "left" in shape.direction else 1
            middle = (track.centres[0] + track.centres[-1]) / 2 / CONFIG.size
            assert abs(middle[axis] - 0.5) <= 0.06 + 1e-9
            beside.append(middle[1 - axis])
    assert np.std(beside) > 0.12


def test_speeds_that_captions_leave_open_are_any():
    data = MovingShapes(replace(CONFIG, unnamed_speeds=0.75, two_objects=0.0))
    named, open_ones = [], []
    for index in range(400):
        clip = data.clip(index)
        travelled = np.abs(clip.objects[0].centres[-1] - clip.objects[0].centres[0]).max() / CONFIG.size
        speed = clip.spec.objects[0].speed
        (named if speed else open_ones).append(travelled)
        if speed:
            low, high = TRAVEL[speed]
            assert low <= travelled <= high
    assert min(open_ones) < 0.1 and max(open_ones) > 0.5
    # A third of the quarter draws no word either: 5/6; three standard deviations of 400 draws.
    assert len(open_ones) / 400 == pytest.approx(5 / 6, abs=0.056)


def test_accelerated_objects_keep_inside_and_straight():
    data = MovingShapes(replace(CONFIG, acceleration=0.6))
    ratios = []
    for index in range(100):
        clip = data.clip(index)
        for shape, track in zip(clip.spec.objects, clip.objects, strict=True):
            assert (track.centres - track.radii[:, None]).min() > 0
            assert (track.centres + track.radii[:, None]).max() < 64
            steps = np.diff(track.centres, axis=0) @ np.array(UNIT_STEPS[shape.direction])
            assert steps.min() > 0
            ratios.append(steps[-1] / steps[0])
    assert min(ratios) < 0.4 and max(ratios) > 2.5


def test_fading_objects_keep_hue_and_double_at_most():
    data = MovingShapes(replace(CONFIG, fade=0.69))
    factors = []
    for index in range(100):
        for track in data.clip(index).objects:
            brightness = track.colours.max(axis=1)
            assert brightness.max() <= 1
            assert np.ptp(track.colours / brightness[:, None], axis=0).max() < 1e-9
            factors.append(brightness[-1] / brightness[0])
    assert 1 <= min(factors) < 1.05 and 1.8 < max(factors) <= 2


def test_clips_of_one_style_are_those_of_another_drawn_differently():
    flat, shaded, underlit = (
        MovingShapes(replace(CONFIG, styles=(style,))).clip(3) for style in ("flat", "shaded", "underlit")
    )
    assert flat.objects[0].centres.tolist() == shaded.objects[0].centres.tolist()
    x, y = np.floor(flat.objects[0].centres[0]).astype(int)
    reach = int(flat.objects[0].radii[0] / 2)
    levels = {}
    for clip in (flat, shaded, underlit):
        frame = render(clip)[0].astype(int).sum(axis=-1)
        levels[clip.style] = frame[y - reach, x] - frame[y + reach, x]
        assert np.array_equal(render(clip)[0][0, 0], render(flat)[0][0, 0])
    assert levels["flat"] == 0 and levels["shaded"] > 20 and levels["underlit"] < -60


def test_a_style_is_drawn_for_each_clip():
    data = MovingShapes(replace(CONFIG, styles=("flat", "shaded")))
    styles = [data.clip(index).style for index in range(100)]
    assert 35 < styles.count("shaded") < 65
    assert all(data.clip(index).style == style for index, style in enumerate(styles[:5]))


def test_the_flat_style_is_what_there_was_before_styles():
    """Hash of the pixels before there were styles."""
    frames, _ = MovingShapes(MovingShapesConfig(seed=0))[7]
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == "904d8287edcf8929"


@pytest.mark.parametrize("styles", [(), ("flat", "oil")])
def test_unknown_styles_are_refused(styles):
    with pytest.raises(ValueError, match="expected at least one of flat, shaded, underlit"):
        MovingShapesConfig(styles=styles)
