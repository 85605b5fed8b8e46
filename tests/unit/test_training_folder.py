"""Training on a folder: videos and folders of frames, captions, windows, and files that cannot be used."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.data.folder import FolderClips
from weft.training.data.moving_shapes import MovingShapesConfig, write_dataset
from weft.training.data.video_files import read_video, write_video
from weft.training.sections import FolderData
from weft.training.settings import InputError, RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four videos of nine frames, 32 x 32, with captions."""
    write_dataset(tmp_path / "clips", 4, MovingShapesConfig(size=32, frames=9, count=4, seed=1))
    return tmp_path / "clips"


def data(folder: Path, **more) -> FolderData:
    return FolderData(**({"path": str(folder), "size": 16, "frames": 4, "stride": 2, "held_out": 1} | more))


def numbered(folder: Path, count: int, first: int = 1) -> None:
    """Grey frames; each tells its place by its level: 10 per frame."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (24, 20), (10 * number,) * 3).save(folder / f"frame{first + number}.png")


def test_folder_clips(folder):
    captions = [json.loads(line)["caption"] for line in (folder / "captions.jsonl").read_text().splitlines()]
    clips = FolderClips(data(folder), "train")
    assert len(clips) == 3 and len(FolderClips(data(folder), "held_out")) == 1
    frames, caption = clips[1]
    assert frames.shape == (4, 16, 16, 3) and str(frames.dtype) == "uint8"
    assert caption == captions[1]
    assert (clips[1][0] == frames).all()

    (folder / "captions.jsonl").unlink()
    (folder / "00001.txt").write_text("words\n")
    assert FolderClips(data(folder), "train").captions == ["", "words", ""]
    with pytest.raises(RecipeError, match="0 usable clips .*00000.mp4: 9 frames, expected at least 11"):
        FolderClips(data(folder, frames=6), "train")
    with pytest.raises(RecipeError, match="4 usable clips in .*, expected more than data.held_out = 4"):
        FolderClips(data(folder, held_out=4), "train")
    with pytest.raises(RecipeError, match="no such folder of videos"):
        FolderClips(data(folder / "absent"), "train")
    (folder / "captions.jsonl").write_text('{"file": "00000.mp4"}\n')
    with pytest.raises(RecipeError, match="captions.jsonl, line 1"):
        FolderClips(data(folder), "train")


def test_videos_that_cannot_be_used_are_left_out_when_the_folder_is_opened(folder, caplog):
    (folder / "00000.mp4").write_bytes(b"not a video")
    content = (folder / "00001.mp4").read_bytes()
    (folder / "00001.mp4").write_bytes(content[: len(content) // 3])
    write_video(folder / "00004.mp4", np.zeros((6, 32, 32, 3), np.uint8), 8)
    numbered(folder / "broken", 9)
    (folder / "broken" / "frame1.png").write_bytes(b"not an image")
    clips = FolderClips(data(folder, held_out=0), "train")
    assert [source.path.name for source in clips.sources] == ["00002.mp4", "00003.mp4"]
    assert "4 of 6 clips in" in caplog.text
    assert "00000.mp4: cannot be read as a video" in caplog.text and "..." in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_lengths_are_those_of_the_videos(tmp_path, suffix):
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    if suffix == ".gif":
        images = [Image.fromarray(frame + 20 * index) for index, frame in enumerate(frames)]
        images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:], duration=100)
    else:
        write_video(tmp_path / f"clip{suffix}", frames, 8)
    assert FolderClips(data(tmp_path, held_out=0, stride=1), "train").lengths == [9]


def test_windows_change_with_the_epoch_and_are_the_same_again(folder):
    numbered(folder / "frames", 20)
    for path in folder.glob("*.mp4"):
        path.unlink()
    settings = data(folder, held_out=0)
    windows = [FolderClips(settings, "train").load(0, epoch)[0] for epoch in range(6)]
    starts = [int(window[0, 0, 0, 0]) // 10 for window in windows]
    assert len(set(starts)) > 2 and all(0 <= begin <= 13 for begin in starts)
    for window, begin in zip(windows, starts, strict=True):
        assert window[:, 8, 8, 0].tolist() == [10 * (begin + 2 * number) for number in range(4)]
    again = FolderClips(settings, "train")
    assert all((again.load(0, epoch)[0] == window).all() for epoch, window in enumerate(windows))


def test_folders_of_frames_are_clips(tmp_path):
    numbered(tmp_path / "sky" / "a", 12, first=1)  # frame2 comes before frame10
    numbered(tmp_path / "sky" / "b", 5)
    (tmp_path / "captions.jsonl").write_text('{"file": "sky/a", "caption": "clouds"}\n')
    Image.new("RGB", (8, 8)).save(tmp_path / "preview.png")
    clips = FolderClips(data(tmp_path, frames=12, stride=1, held_out=0), "train")
    frames, caption = clips[0]
    assert len(clips) == 1 and caption == "clouds"
    assert frames.shape == (12, 16, 16, 3)
    assert frames[:, 0, 0, 1].tolist() == list(range(0, 120, 10))
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "sky" / "a.txt").write_text("night")
    assert FolderClips(data(tmp_path, held_out=0, stride=1), "train").captions == ["night", ""]


def test_animated_pictures_are_clips(tmp_path, caplog):
    """FFmpeg does not decode animated webp, which ComfyUI's templates are shown by."""
    pictures = [Image.new("RGB", (24, 20), (20 * number,) * 3) for number in range(12)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True, duration=50)
    pictures[0].save(tmp_path / "still.webp")
    (tmp_path / "broken.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:30])
    (tmp_path / "a.txt").write_text("grey")
    clips = FolderClips(data(tmp_path, frames=6, stride=2, held_out=0), "train")
    assert len(clips) == 1 and clips.captions == ["grey"]
    assert "still.webp: 1 frames, expected at least 11" in caplog.text
    assert "broken.webp: cannot be read as an image" in caplog.text
    frames, _ = clips[0]
    first = int(frames[0, 0, 0, 0]) // 20
    assert frames[:, 5, 5, 1].tolist() == [20 * (first + 2 * index) for index in range(6)]
    (tmp_path / "a.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:500])
    with pytest.raises(InputError, match="a.webp"):
        clips[0]


def test_files_that_break_later_are_named(folder):
    clips = FolderClips(data(folder), "train")
    (folder / "00001.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="00001.mp4: cannot be read as a video: Invalid data"):
        clips[1]
    write_video(folder / "00001.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8)
    with pytest.raises(InputError, match="00001.mp4: . of the frames . to . could be decoded, expected 4"):
        clips[1]


def test_a_file_without_video_is_named(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(InputError, match="clip.mp4: cannot be read as a video"):
        read_video(tmp_path / "clip.mp4")


def autoencoder_run(folder: Path, run: Path, *more: str):
    table = read_table(TINY / "autoencoder.toml")
    table["data"] = {"kind": "folder", "path": str(folder), "size": 16, "frames": 4, "held_out": 1}
    override(table, ["run.steps=6", "run.batch_size=1", "run.accumulation=1", *more])
    return start(read_recipe(table, "tiny"), run, CPU)


def test_a_video_that_breaks_in_the_second_epoch_loses_no_step(folder, tmp_path):
    autoencoder_run(folder, tmp_path / "straight").run()
    trainer = autoencoder_run(folder, tmp_path / "run")
    kept = {path: (path.read_bytes(), path.stat()) for path in folder.glob("*.mp4")}
    load, calls = trainer.task.batch, []

    def load_and_break(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            for path in kept:
                path.write_bytes(b"")
        return load(*arguments)

    trainer.task.batch = load_and_break
    with pytest.raises(InputError, match="mp4: cannot be read as a video"):
        trainer.run()
    assert trainer.step == 3
    for path, (content, status) in kept.items():
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    resume(tmp_path / "run", CPU).run()
    first, second = (
        checkpoints.read(checkpoints.newest(tmp_path / name))["networks"]["vae"] for name in ("straight", "run")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_frames_may_be_wider_than_high(folder, tmp_path):
    """They cover height and width and are cut in the middle; square settings stay as they were."""
    assert FolderClips(data(folder, width=24, height=16), "train")[0][0].shape == (4, 16, 24, 3)
    numbered(tmp_path / "grey" / "clip", 8)
    wide, square = (
        FolderClips(data(tmp_path / "grey", held_out=0, **more), "train")[0][0]
        for more in ({"width": 24, "height": 10}, {"width": 20, "height": 20})
    )
    assert wide.shape == (4, 10, 24, 3) and square.shape == (4, 20, 20, 3)
    plain = FolderClips(data(tmp_path / "grey", held_out=0, size=20), "train")[0][0]
    assert np.array_equal(square, plain)
    picture = np.zeros((20, 24, 3), np.uint8)
    picture[8:12, 10:14] = 255
    Image.fromarray(picture).save(tmp_path / "middle.png")
    (tmp_path / "one" / "clip").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "one" / "clip" / "1.png")
    high = FolderClips(data(tmp_path / "one", frames=1, stride=1, held_out=0, width=12, height=20), "train")[0][0][0]
    assert np.array_equal(high, picture[:, 6:18])


def test_impossible_sides_are_refused():
    table = read_table(TINY / "show1.toml")
    table["data"] = {"kind": "folder", "path": "x", "frames": 8, "width": 20}
    with pytest.raises(RecipeError, match="data.height: missing beside data.width, expected both, or data.size alone"):
        read_recipe(table, "show1.toml")
    table["data"]["height"] = 9
    with pytest.raises(RecipeError, match=r"data.height / pixels.shrink: found 9, expected a multiple of 2"):
        read_recipe(table, "show1.toml")
    table["data"]["height"] = 10
    assert read_recipe(table, "show1.toml").data.sides == {"height": 10, "width": 20}
    table = read_table(TINY / "autoencoder.toml")
    table["data"] = {"kind": "folder", "path": "x", "width": 24, "height": 16}
    with pytest.raises(RecipeError, match="found 24 x 16, the task 'autoencoder' takes squares"):
        read_recipe(table, "autoencoder.toml")
