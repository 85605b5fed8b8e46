"""Where clips come from beside a plain folder: tables of captions, archives, frame rates; and videos that are bad."""

import csv
import io
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.training.batches import ShuffledClips, StreamedClips
from weft.training.build import resume, start
from weft.training.config import override, read_recipe, read_table
from weft.training.data import shards, video_files
from weft.training.data.clips import alike, open_clips, stack_readable
from weft.training.data.folder import FolderClips, PictureClips, read_captions
from weft.training.data.shards import ShardClips, find_archives
from weft.training.data.sources import Extent, VideoFile
from weft.training.data.video_clips import frame_numbers
from weft.training.data.video_files import count_frames, write_video
from weft.training.sections import FolderData, ShardData, VideoData, frame_size
from weft.training.settings import InputError, RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")


def video(path: Path, level: int, frames: int = 9, fps: float = 8) -> Path:
    """Grey frames that get brighter by one level in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((frames, 16, 16, 3), level, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
    write_video(path, pixels, fps)
    return path


def folder_data(path: Path, **more) -> FolderData:
    return FolderData(**({"path": str(path), "size": 16, "frames": 4, "held_out": 0} | more))


def shard_data(path: Path | str, **more) -> ShardData:
    return ShardData(**({"path": str(path), "size": 16, "frames": 4, "held_out": 0} | more))


def write_table(path: Path, columns: list[str], *rows: tuple) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, each of another brightness."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(6):
        video(folder / f"{number}.mp4", 30 * number)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "videos")
    return tmp_path / "videos"


def pack(archive: Path, videos: list[Path], *, text: str = ".txt", first: int = 0, names: str = "{:04d}") -> Path:
    """An archive as webdataset writes it."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as file:
        for number, path in enumerate(videos, first):
            key = names.format(number)
            file.add(path, f"{key}.mp4")
            words = f"caption {number}"
            add(file, f"{key}{text}", words if text == ".txt" else json.dumps({"caption": words, "url": "..."}))
    return archive


def add(file: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    file.addfile(member, io.BytesIO(text.encode()))


def level(clip: np.ndarray) -> int:
    """The video that a clip is of, by its brightness."""
    return round(float(clip[0].mean()) / 30 - 0.1)


def test_a_table_of_captions(folder):
    write_table(folder / "captions.csv", ["video", "text", "other"], ("1.mp4", "one, two", 5), ("0.mp4", " three ", 6))
    assert read_captions(folder) == {"1.mp4": "one, two", "0.mp4": "three"}
    clips = FolderClips(folder_data(folder), "train")
    assert clips.captions == ["three", "one, two", "", "", "", ""]
    # A list that the recipe names says which videos are used, too.
    named = FolderClips(folder_data(folder, captions="captions.csv"), "train")
    assert [source.path.name for source in named.sources] == ["0.mp4", "1.mp4"]
    assert named.captions == ["three", "one, two"]


def test_webvid(folder, tmp_path, caplog):
    (folder / "page_1").mkdir()
    (folder / "4.mp4").rename(folder / "page_1" / "4.mp4")
    rows = (4, "https://x/4.mp4", "PT1S", "page_1", "four"), (2, "", "", "gone", "two"), (77, "", "", "page_1", "lost")
    write_table(tmp_path / "list.csv", ["videoid", "contentUrl", "duration", "page_dir", "name"], *rows)
    clips = FolderClips(folder_data(folder, captions=str(tmp_path / "list.csv"), check=False), "train")
    assert [source.path.name for source in clips.sources] == ["2.mp4", "4.mp4"] and clips.captions == ["two", "four"]
    assert "1 of 3 videos of" in caplog.text and "page_1/77.mp4" in caplog.text
    assert level(clips[1][0]) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "a,b\n1,2\n", "found the columns a, b, expected file and caption, or WebVid's videoid"),
        ("captions.jsonl", '{"file": "0.mp4", "caption": 5}\n', "captions.jsonl, line 1: expected"),
        ("captions.parquet", "PAR1", "of the kind '.parquet', expected .jsonl or .csv"),
        (None, "", "data.captions: found 'none.csv', which is neither in"),
    ],
)
def test_lists_that_cannot_be_read(folder, name, content, message):
    if name:
        (folder / name).write_text(content)
    with pytest.raises(RecipeError, match=message):
        FolderClips(folder_data(folder, captions=name or "none.csv"), "train")


def test_frames_of_a_rate():
    """24 frames a second seen at 8: every third; at 5: the nearest in time; a slow video is seen whole."""
    found = {fps: frame_numbers(VideoData(frames=4, fps=fps), Extent(100, 24.0), "v", None) for fps in (8.0, 5.0, 30.0)}
    assert found == {8.0: [0, 3, 6, 9], 5.0: [0, 5, 10, 14], 30.0: [0, 1, 2, 3]}
    assert frame_numbers(VideoData(frames=3, stride=4), Extent(9, 0.0), "v", None) == [0, 4, 8]
    starts = {
        frame_numbers(VideoData(frames=3, stride=4), Extent(11, 0.0), "v", np.random.default_rng(seed))[0]
        for seed in range(20)
    }
    assert starts == {0, 1, 2}
    with pytest.raises(InputError, match="v: 9 frames, expected at least 10"):
        frame_numbers(VideoData(frames=4, fps=8.0), Extent(9, 24.0), "v", None)
    with pytest.raises(InputError, match=r"v: says no frames per second, which data.fps needs"):
        frame_numbers(VideoData(fps=8.0), Extent(99, 0.0), "v", None)
    with pytest.raises(ValueError, match="stride: found 2 beside fps = 8.0, expected one of both"):
        VideoData(fps=8.0, stride=2)


def test_a_folder_at_a_rate(tmp_path):
    video(tmp_path / "a.mp4", 20, frames=24, fps=24)
    video(tmp_path / "b.mp4", 120, frames=5, fps=24)
    assert count_frames(tmp_path / "a.mp4") == (24, 24.0, 16, 16)
    clips = FolderClips(folder_data(tmp_path, fps=6.0), "train")
    assert [source.path.name for source in clips.sources] == ["a.mp4"]
    frames = clips[0][0][:, 8, 8, 0].astype(int)
    assert np.abs(np.diff(frames) - 4).max() <= 1  # four levels: every fourth frame


def test_videos_that_are_not_checked_are_replaced_and_counted(folder, caplog):
    (folder / "2.mp4").write_bytes(b"no video")
    video(folder / "3.mp4", 90, frames=2)
    clips = FolderClips(folder_data(folder, check=False), "train")
    assert len(clips) == 6 and clips.unchecked
    with caplog.at_level(logging.WARNING):
        videos, numbers = stack_readable(clips, [1, 2, 3, 2], [0, 0, 0, 1])
    assert numbers == [1, 4, 4, 4] and [level(clip) for clip in videos.numpy()] == [1, 4, 4, 4]
    assert clips.skipped == {2, 3} and "2 of 6 clips could not be read and were replaced by the next" in caplog.text
    assert "3.mp4: 2 frames, expected at least 4" in caplog.text
    # A folder that was checked has none such: what breaks later stops the training.
    (folder / "1.mp4").write_bytes(b"no video")
    checked = FolderClips(folder_data(folder), "train")
    (folder / "0.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="0.mp4: cannot be read as a video"):
        stack_readable(checked, [0], [0])
    for path in folder.glob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(InputError, match="none of the clips 1 to 0 could be read"):
        stack_readable(FolderClips(folder_data(folder, check=False), "train"), [1], [0])


@pytest.mark.parametrize("text", [".txt", ".json"])
def test_archives(folder, tmp_path, text, caplog):
    paths = sorted(folder.glob("*.mp4"))
    pack(tmp_path / "shards" / "00000.tar", paths[:4], text=text)
    pack(tmp_path / "shards" / "00001.tar", paths[4:], text=text, first=4)
    clips = open_clips(shard_data(tmp_path / "shards"), "train")
    assert len(clips) == 6 and clips.texts(6) == [f"caption {number}" for number in range(6)]
    assert [level(clips.load(number)[0]) for number in range(6)] == list(range(6)) and clips.runs == [4, 2]
    # The same frames as from files.
    plain = FolderClips(folder_data(folder), "train")
    assert all((clips.load(number, 3)[0] == plain.load(number, 3)[0]).all() for number in range(6))
    held = ShardClips(shard_data(tmp_path / "shards", held_out=2), "held_out")
    assert held.texts(9) == ["caption 4", "caption 5"]
    assert clips.fingerprint(2)[1][0] == "00000.tar/0001.mp4" and not caplog.text


def test_archives_are_read_once(folder, tmp_path, monkeypatch):
    archive = pack(tmp_path / "shards" / "a.tar", sorted(folder.glob("*.mp4")))
    first = ShardClips(shard_data(archive.parent, index=str(tmp_path / "index")), "train")
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["a.tar.index.json"]
    assert [path.name for path in archive.parent.iterdir()] == ["a.tar"]
    with monkeypatch.context() as patched:
        patched.setattr(shards, "read_archive", lambda *arguments: pytest.fail("read again"))
        again = ShardClips(shard_data(archive.parent, index=str(tmp_path / "index")), "train")
    assert again.fingerprint(9) == first.fingerprint(9)
    pack(archive, sorted(folder.glob("*.mp4"))[:2])
    assert len(ShardClips(shard_data(archive.parent, index=str(tmp_path / "index")), "train")) == 2


def test_bad_archives(folder, tmp_path, caplog):
    """A cut archive gives what stands before the cut; samples without video, videos without captions are counted."""
    paths = sorted(folder.glob("*.mp4"))
    whole = pack(tmp_path / "shards" / "a.tar", paths)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with tarfile.open(tmp_path / "shards" / "b.tar", "w") as file:
        add(file, "x/1.txt", "no video")
        file.add(paths[5], "x/2.mp4")
        add(file, "x/3.json", "{broken")
        file.add(paths[4], "x/3.mp4")
        add(file, "x/4.mp4", "not a video at all")
    with caplog.at_level(logging.WARNING):
        clips = ShardClips(shard_data(tmp_path / "shards"), "train")
    names = [source.path.name for source in clips.sources]
    assert names[-3:] == ["x/2.mp4", "x/3.mp4", "x/4.mp4"] and 1 <= len(names) - 3 < 6
    assert "1 of 2 archives are damaged: a.tar: unexpected end of data" in caplog.text
    assert "1 samples have no video" in caplog.text and "3 videos have no caption" in caplog.text
    videos, numbers = stack_readable(clips, [len(clips) - 2, len(clips) - 1], [0, 0])
    assert numbers == [len(clips) - 2, 0] and [level(clip) for clip in videos.numpy()] == [4, 0]


def test_names_of_archives(tmp_path):
    for number in (8, 9, 10):
        (tmp_path / f"clips-{number:03d}.tar").write_bytes(b"")
    assert [path.name for path in find_archives(f"{tmp_path}/clips-{{008..010}}.tar")] == [
        "clips-008.tar",
        "clips-009.tar",
        "clips-010.tar",
    ]
    assert len(find_archives(f"{tmp_path}/clips-*.tar")) == len(find_archives(str(tmp_path))) == 3
    with pytest.raises(RecipeError, match="1 of 4 archives of .* are missing: clips-011.tar"):
        find_archives(f"{tmp_path}/clips-{{008..011}}.tar")
    with pytest.raises(RecipeError, match="no .tar files in"):
        find_archives(str(tmp_path / "none"))
    with pytest.raises(RecipeError, match="0 videos in 3 archives of .*, expected more than data.held_out = 0"):
        ShardClips(shard_data(tmp_path), "train")


def test_the_order_of_streamed_clips():
    """Every clip once per epoch; neighbours lie in few archives; a position is enough to go on."""
    clips = StreamedClips([50, 30, 40], seed=3, buffer=20)
    order, epochs = clips.take(0, 240)
    assert sorted(order[:120].tolist()) == sorted(order[120:].tolist()) == list(range(120))
    assert epochs.tolist() == [0] * 120 + [1] * 120 and order[:120].tolist() != order[120:].tolist()
    archives = torch.bucketize(order, torch.tensor([50, 80]), right=True).split(20)
    assert max(len(set(part.tolist())) for part in archives) == 2
    assert order[:20].tolist() != sorted(order[:20].tolist())
    again = StreamedClips([50, 30, 40], seed=3, buffer=20)
    assert torch.equal(again.take(77, 60)[0], order[77:137])
    assert not torch.equal(ShuffledClips(120, 3).take(0, 120)[0], order[:120])


def archive_run(archives: Path, run: Path, *more: str):
    table = read_table(TINY / "autoencoder.toml")
    data = {"kind": "shards", "path": str(archives), "size": 16, "frames": 4, "held_out": 1, "buffer": 3}
    override(table, ["run.steps=6", "run.batch_size=1", "run.accumulation=1", *more])
    table["data"] = data
    return start(read_recipe(table, "tiny"), run, CPU)


def test_training_on_archives_resumes_bit_for_bit(folder, tmp_path):
    (folder / "3.mp4").write_bytes(b"no video")
    paths = sorted(folder.glob("*.mp4"))
    archives = tmp_path / "shards"
    for number in range(3):
        pack(archives / f"{number}.tar", paths[2 * number : 2 * number + 2])
    straight = archive_run(archives, tmp_path / "straight")
    straight.run()
    archive_run(archives, tmp_path / "run").run(3)
    again = resume(tmp_path / "run", CPU)
    again.run()
    assert again.step == straight.step == 6 and straight.task.clips.skipped == {3}
    for name, weight in straight.task.autoencoder.state_dict().items():
        assert torch.equal(again.task.autoencoder.state_dict()[name], weight), name


def test_another_decoder_is_asked_first(folder, monkeypatch):
    """Where it is installed; what it cannot read, PyAV reads."""
    asked = []

    class Decoder:
        def __init__(self, source, num_ffmpeg_threads):
            asked.append(source)
            if str(source).endswith("1.mp4"):
                raise RuntimeError("cannot be read")

        def get_frames_at(self, indices):
            frames = torch.arange(len(indices), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
            return type("Batch", (), {"data": frames})

    plain = VideoFile(folder / "1.mp4").frames([2, 5])
    monkeypatch.setattr(video_files, "torchcodec_decoder", lambda: Decoder)
    found = VideoFile(folder / "0.mp4").frames([3, 4, 8])
    assert [int(frame.to_ndarray(format="rgb24")[0, 0, 0]) for frame in found] == [0, 1, 2]
    again = VideoFile(folder / "1.mp4").frames([2, 5])
    for one, other in zip(again, plain, strict=True):
        assert (one.to_ndarray(format="rgb24") == other.to_ndarray(format="rgb24")).all()
    assert len(asked) == 2


def test_clips_of_several_shapes(tmp_path):
    """Wide, high and square videos: each has the nearest size, batches have one, and every clip is shown as often."""
    for number, (width, height) in enumerate([(48, 32), (32, 48), (34, 32), (60, 30), (20, 44), (32, 32)]):
        path = tmp_path / f"{number}.mp4"
        write_video(path, np.full((5, height, width, 3), 30 * number, np.uint8), 8)
    data = folder_data(tmp_path, buckets=((24, 16), (16, 24), (16, 16)), held_out=1)
    clips = FolderClips(data, "train")
    assert [source.path.name for source in clips.sources] == ["0.mp4", "3.mp4", "1.mp4", "4.mp4", "2.mp4"]
    assert clips.borders() == [0, 2, 4, 5] and frame_size(data) == (16, 24)
    assert [clips[number][0].shape[1:3] for number in (0, 2, 4)] == [(16, 24), (24, 16), (16, 16)]
    assert FolderClips(data, "held_out")[0][0].shape == (4, 16, 16, 3)
    videos, numbers = stack_readable(clips, [3, 0, 1, 4], [0] * 4)
    assert videos.shape == (4, 4, 24, 16, 3) and numbers[0] == 3 and set(numbers) <= {2, 3}


def test_clips_of_all_shapes_are_shown_as_often():
    """Of 300 clips of three shapes 150,000 in batches of five: each 500 times, with a deviation of about 40."""
    borders, order = [0, 30, 180, 300], ShuffledClips(300, seed=0)
    shown = np.array([alike(order.take(5 * step, 5)[0].tolist(), borders) for step in range(30_000)])
    assert (np.digitize(shown, borders).std(axis=1) == 0).all()
    counts = np.bincount(shown.flatten(), minlength=300)
    assert [counts[first:end].mean() for first, end in ((0, 30), (30, 180), (180, 300))] == pytest.approx(
        [500] * 3, rel=0.1
    )
    assert counts.min() > 300 and counts.max() < 700, counts


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"buckets": ((4, 16),)}, "expected widths and heights of at least 8 pixels"),
        ({"buckets": ((16, 16),), "width": 16, "height": 16}, "found width or height beside them"),
        ({"buckets": ((16, 16),), "check": False}, "check: found false beside buckets"),
    ],
)
def test_impossible_shapes(more, message):
    with pytest.raises(ValueError, match=message):
        FolderData(path="x", **more)


def test_latents_of_several_shapes(tmp_path):
    """Training on them starts, goes on bit for bit, and every batch has one size."""
    for number, (width, height) in enumerate([(48, 32), (32, 48), (48, 32), (32, 48), (32, 48), (48, 32)]):
        (tmp_path / "videos").mkdir(exist_ok=True)
        write_video(tmp_path / "videos" / f"{number}.mp4", noise(number, height, width), 8)
        (tmp_path / "videos" / f"{number}.txt").write_text(f"word{number}")
    torch.manual_seed(0)
    network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(1, 4, 4), norm_groups=4))
    parts = {"system": "lvdm", "latent": LatentSpec(4, 4, 1), "schedule": NoiseSchedule(), "metadata": {}}
    save_bundle(tmp_path / "vae.safetensors", {"vae": network}, **parts)
    table = read_table(TINY / "text_to_video.toml")
    override(table, [f"autoencoder.path={tmp_path / 'vae.safetensors'}", "run.steps=6", "run.batch_size=2"])
    buckets = [[24, 16], [16, 24]]
    table["data"] = {"kind": "folder", "path": str(tmp_path / "videos"), "buckets": buckets, "frames": 4, "held_out": 1}
    recipe = read_recipe(table, "tiny")
    straight = start(recipe, tmp_path / "straight", CPU)
    assert straight.task.train_latents.borders() == [0, 2, 5]
    sizes = [straight.task.batch(torch.tensor([first, 1, 3]), torch.zeros(3))[0].shape[-2:] for first in (0, 4)]
    assert sizes == [(4, 6), (6, 4)]
    straight.run()
    start(recipe, tmp_path / "run", CPU).run(3)
    again = resume(tmp_path / "run", CPU)
    again.run()
    for name, weight in straight.task.unet.state_dict().items():
        assert torch.equal(again.task.unet.state_dict()[name], weight), name
    with pytest.raises(RecipeError, match="data.buckets: found them with the task 'autoencoder', whose clips have one"):
        other = read_table(TINY / "autoencoder.toml")
        other["data"] = table["data"]
        read_recipe(other, "tiny")


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (6, height, width, 3), dtype=np.uint8)


def test_pictures_of_their_own(tmp_path):
    """Steps on pictures see these instead of frames, resume bit for bit, and leave out what cannot be read."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.fromarray(noise(number, 20, 28)[0]).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a red circle moves left to right over a dark background")
    (pictures / "bad.jpg").write_bytes(b"no picture")
    clips = PictureClips(folder_data(pictures, frames=1), "train")
    assert len(clips) == 5 and clips[3][0].shape == (1, 16, 16, 3)
    torch.manual_seed(0)
    network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(1, 4, 4), norm_groups=4))
    parts = {"system": "higen", "latent": LatentSpec(4, 4, 1), "schedule": NoiseSchedule(), "metadata": {}}
    save_bundle(tmp_path / "vae.safetensors", {"vae": network}, **parts)
    table = read_table(TINY / "higen.toml")
    changes = [f"autoencoder.path={tmp_path / 'vae.safetensors'}", "run.steps=4", "pictures.share=0.5"]
    override(table, [*changes, f"pictures.path={pictures}"])
    recipe = read_recipe(table, "tiny")
    straight = start(recipe, tmp_path / "straight", CPU)
    found, _, tokens = straight.task.picture_set.draw(7)
    assert found.shape[:3] == (7, 4, 1) and tokens.shape[0] == 7
    # Drawing has used up random numbers of the first run.
    straight = start(recipe, tmp_path / "again", CPU)
    straight.run()
    start(recipe, tmp_path / "run", CPU).run(2)
    again = resume(tmp_path / "run", CPU)
    again.run()
    for name, weight in straight.task.unet.state_dict().items():
        assert torch.equal(again.task.unet.state_dict()[name], weight), name
