"""The cache of latents: shards written as they are encoded, an interrupt that loses one, files that changed."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.training import latents as module
from weft.training.build import start
from weft.training.cli import main
from weft.training.config import read_recipe, read_table
from weft.training.data.folder import FolderClips
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig, write_dataset
from weft.training.data.video_files import write_video
from weft.training.latents import Latents, Shard, encode_clips
from weft.training.sections import FolderData
from weft.training.settings import InputError, RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
DATA = MovingShapesConfig(size=16, frames=4, count=40)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "ENCODE_BATCH", 4)
    monkeypatch.setattr(module, "SHARD_CLIPS", 8)


@pytest.fixture(scope="module")
def network() -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=4, downsample=(2, 4, 4), norm_groups=4))


def encode(network, cache: Path, data=DATA, clips=None, count: int = 20) -> Latents:
    return encode_clips(network, data, clips or MovingShapes(data), "train", count, cache, CPU, False)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def values(latents: Latents) -> torch.Tensor:
    return torch.stack(latents.take(list(range(len(latents)))))


class Counted(MovingShapes):
    """Counts what is loaded; Ctrl-C at one clip."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__(DATA)
        self.loaded: list[int] = []
        self.interrupt_at = interrupt_at

    def load(self, index: int, epoch: int = 0) -> tuple[np.ndarray, str]:
        if index == self.interrupt_at:
            raise KeyboardInterrupt
        self.loaded.append(index)
        return super().load(index, epoch)


def test_an_interrupt_keeps_whole_shards_and_nothing_else(network, tmp_path):
    straight = encode(network, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        encode(network, tmp_path / "cache", clips=Counted(interrupt_at=18))
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] and len(shards(tmp_path / "cache")) == 2
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    again = Counted()
    latents = encode(network, tmp_path / "cache", clips=again)
    assert again.loaded == [16, 17, 18, 19]
    assert torch.equal(values(latents), values(straight)) and latents.captions == straight.captions
    nothing = Counted()
    encode(network, tmp_path / "cache", clips=nothing)
    assert nothing.loaded == []


def test_latents_are_taken_from_their_shards(network, tmp_path):
    latents = encode(network, tmp_path)
    assert [len(shard.mean) for shard in latents.shards] == [8, 8, 4]
    mean, logvar = latents.take([17, 0, 8, 7])
    for place, number in enumerate((17, 0, 8, 7)):
        shard = latents.shards[number // 8]
        assert torch.equal(mean[place], shard.mean[number % 8]) and torch.equal(logvar[place], shard.logvar[number % 8])
        assert latents.captions[number] == MovingShapes(DATA)[number][1]


def test_scale_and_shift_are_those_of_all_samples():
    torch.manual_seed(0)
    parts = [
        Shard(3 + torch.randn(count, 4, 2, 2, 2), torch.randn(count, 4, 2, 2, 2), torch.arange(count), [""] * count)
        for count in (8, 5)
    ]
    scale, shift = Latents(parts).scale_and_shift()
    mean, logvar = (torch.cat([getattr(part, name) for part in parts]).double() for name in ("mean", "logvar"))
    assert shift == pytest.approx(-float(mean.mean()))
    assert scale == pytest.approx(float((mean.var(correction=0) + logvar.exp().mean()).rsqrt()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how memory is backed")
def test_shards_are_read_when_they_are_used(tmp_path):
    """Mapped, not copied: the memory of the process that is not backed by a file does not grow by their size."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    size = 64 << 20
    tensor = torch.zeros(8, size // 16, dtype=torch.float16)
    module._write_shard(tmp_path / "a.safetensors", Shard(tensor, tensor.clone(), torch.arange(8), [""] * 8))
    del tensor
    before = anonymous()
    shard = module._read_shard(tmp_path / "a.safetensors")
    assert float(shard.mean.sum()) == 0
    assert anonymous() - before < size / 2


def test_a_damaged_shard_is_named(network, tmp_path):
    encode(network, tmp_path)
    shards(tmp_path)[1].write_bytes(b"cut off")
    with pytest.raises(RecipeError, match="00001.safetensors: damaged latent cache"):
        encode(network, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "clips", 6, MovingShapesConfig(size=16, frames=6, count=6))
    return tmp_path / "clips"


def folder_data(folder: Path) -> FolderData:
    return FolderData(path=str(folder), size=16, frames=4, held_out=0)


def change_caption(folder: Path) -> None:
    lines = (folder / "captions.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | {"caption": "other words"}
    (folder / "captions.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))


def change_content(folder: Path) -> None:
    write_video(folder / "00000.mp4", np.full((6, 16, 16, 3), 90, np.uint8), 8)


def change_time(folder: Path) -> None:
    os.utime(folder / "00000.mp4", ns=(1, 1))


def change_name(folder: Path) -> None:
    (folder / "00000.mp4").rename(folder / "0.mp4")


@pytest.mark.parametrize("change", [change_caption, change_content, change_time, change_name])
def test_files_that_changed_are_encoded_again(network, tmp_path, folder, change):
    data = folder_data(folder)
    encode(network, tmp_path / "cache", data, FolderClips(data, "train"), 6)
    encode(network, tmp_path / "cache", data, FolderClips(data, "train"), 6)
    assert len(shards(tmp_path / "cache")) == 1
    change(folder)
    latents = encode(network, tmp_path / "cache", data, FolderClips(data, "train"), 6)
    assert len(shards(tmp_path / "cache")) == 2
    assert latents.captions == FolderClips(data, "train").captions


def test_clips_that_break_while_encoding_are_left_out_and_counted(network, tmp_path, folder, caplog):
    data = folder_data(folder)
    clips = FolderClips(data, "train")
    expected = values(encode(network, tmp_path / "whole", data, clips, 6))
    (folder / "00001.mp4").write_bytes(b"")
    latents = encode(network, tmp_path / "cache", data, clips, 6)
    assert latents.indices == [0, 2, 3, 4, 5]
    assert latents.captions == [clips.captions[index] for index in latents.indices]
    torch.testing.assert_close(values(latents), expected[:, latents.indices], rtol=1e-2, atol=1e-3)
    assert "00001.mp4: cannot be read" in caplog.text and "1 of 6 train clips could not be decoded" in caplog.text
    for path in folder.glob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the clips 0 to 5 could be decoded"):
        encode(network, tmp_path / "none", data, clips, 6)


def test_ctrl_c_while_encoding_ends_with_one_line_and_goes_on(tmp_path, capsys, monkeypatch):
    table = read_table(TINY / "autoencoder.toml")
    start(read_recipe(table, "tiny"), tmp_path / "ae", CPU).run()
    load, calls = MovingShapes.load, []

    def load_then_interrupt(self, index, epoch=0):
        calls.append(index)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return load(self, index, epoch)

    monkeypatch.setattr(MovingShapes, "load", load_then_interrupt)
    command = ["train", str(TINY / "text_to_video.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--set", f"autoencoder.path={tmp_path / 'ae'}"]
    capsys.readouterr()
    assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; what was written so far is kept"
    assert len(shards(tmp_path / "run" / "latents")) == 1
    assert main(command) == 0
    assert calls[12] == 8
