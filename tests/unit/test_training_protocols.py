"""`evaluate --protocol` on toy folders: what it measures, and what it says is missing."""

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.analysis.fidelity import psnr, ssim, to_yuv
from weft.kernels.analysis.frechet import frechet_distance
from weft.kernels.networks.inception3d import Inception3D, Inception3DConfig
from weft.model_loaders import inception3d
from weft.model_loaders.errors import CheckpointError
from weft.training import feature_networks, protocols
from weft.training.cli import main
from weft.training.data.video_files import read_video, write_video
from weft.training.feature_networks import CaptionNetwork, ClipNetwork, FrameNetwork
from weft.training.protocols import PROTOCOLS, Protocol

SMALL = Inception3DConfig((2, 3, 4), (((1, 2, 3, 1, 2, 1),), ((2, 1, 2, 1, 1, 1),), ((1, 1, 2, 2, 3, 2),)), 5)
RELEASED = {
    "stem.0.": "Conv3d_1a_7x7.",
    "stem.1.": "Conv3d_2b_1x1.",
    "stem.2.": "Conv3d_2c_3x3.",
    "stages.0.0.": "Mixed_3b.",
    "stages.1.0.": "Mixed_4b.",
    "stages.2.0.": "Mixed_5b.",
    "head.": "logits.conv3d.",
    ".single.": ".b0.",
    ".first.0.": ".b1a.",
    ".first.1.": ".b1b.",
    ".second.0.": ".b2a.",
    ".second.1.": ".b2b.",
    ".pooled.": ".b3b.",
    ".conv.": ".conv3d.",
    ".norm.": ".bn.",
}
CPU = torch.device("cpu")


@pytest.fixture
def i3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny I3D in the released layout."""
    monkeypatch.setattr(inception3d, "Inception3D", functools.partial(Inception3D, SMALL))
    torch.manual_seed(0)
    tensors = {}
    for name, tensor in Inception3D(SMALL).state_dict().items():
        for ours, theirs in RELEASED.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    torch.save(tensors, tmp_path / "i3d.pt")
    return tmp_path / "i3d.pt"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(place) for place in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, **marks, "vocab_size": len(words), "max_position_embeddings": 12},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def videos(folder: Path, count: int, *, first: int = 0, frames: int = 16, captions: bool = True) -> Path:
    """Videos of squares that drift, each of its own colours."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        clip = np.empty((frames, 32, 48, 3), np.uint8)
        clip[:] = rng.integers(0, 255, 3)
        for frame in range(frames):
            clip[frame, 8:24, 4 + frame % 20 : 20 + frame % 20] = rng.integers(0, 255, 3)
        write_video(folder / f"{number:03d}.mp4", clip, 8)
        rows.append({"file": f"{number:03d}.mp4", "caption": f"caption {'abcdefgh'[number % 8]}"})
    if captions:
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """Protocols of a few videos."""
    measures = ("fvd", "kvd", "clipsim", "consistency")
    small = Protocol("a toy", videos=4, captions=2, per_caption=2, measures=measures, size=32, runs=2)
    long = Protocol("a long toy", videos=2, measures=("fvd",), size=32, length=32)
    monkeypatch.setitem(protocols.PROTOCOLS, "ucf101", small)
    monkeypatch.setitem(protocols.PROTOCOLS, "lvdm_long", long)


def captioned(folder: Path, captions: list[str]) -> None:
    rows = [
        {"file": path.name, "caption": text} for path, text in zip(sorted(folder.glob("*.mp4")), captions, strict=False)
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_papers_numbers():
    assert (PROTOCOLS["ucf101"].videos, PROTOCOLS["ucf101"].captions, PROTOCOLS["ucf101"].per_caption) == (
        2048,
        101,
        20,
    )
    assert (PROTOCOLS["msrvtt"].videos, PROTOCOLS["msrvtt"].captions) == (2990, 2990)
    assert (PROTOCOLS["lvdm"].videos, PROTOCOLS["lvdm"].runs, PROTOCOLS["lvdm_long"].length) == (2048, 10, 1024)
    assert {(protocol.frames, protocol.size) for protocol in PROTOCOLS.values()} == {(16, 256)}


def test_a_folder_is_measured(tmp_path, toy, i3d, clip, capsys):
    made, real = videos(tmp_path / "made", 4), videos(tmp_path / "real", 5, first=20, frames=24, captions=False)
    captioned(made, ["caption a", "caption b"] * 2)
    options = ["--protocol", "ucf101", "--reference", str(real), "--i3d", str(i3d), "--clip", str(clip)]
    assert main(["evaluate", str(made), *options]) == 0
    table = json.loads((made / "scores.json").read_text())
    assert (table["protocol"], table["videos"], table["real_videos"]) == ("a toy", 4, 4)
    assert "missing" not in table and table["networks"]["i3d"].startswith("i3d.pt ")
    assert table["fvd"] > 0 and table["fvd_deviation"] > 0 and "kvd_deviation" in table
    assert -1 <= table["clipsim"] <= 1 and -1 <= table["consistency"] <= 1
    assert str(table["fvd"]) in capsys.readouterr().out
    # Drawn the same way every time.
    assert main(["evaluate", str(made), *options]) == 0
    assert json.loads((made / "scores.json").read_text()) == table


def test_a_folder_beside_itself(tmp_path, toy, i3d):
    """Videos of 32 frames as two stretches of 16, each beside all of the same 16 frames: no distance to the first."""
    made = videos(tmp_path / "made", 3, frames=32, captions=False)
    first = tmp_path / "first"
    first.mkdir()
    for path in made.glob("*.mp4"):
        write_video(first / path.name, read_video(path)[0][:16], 8, crf=0)
    assert main(["evaluate", str(made), "--protocol", "lvdm_long", "--reference", str(first), "--i3d", str(i3d)]) == 0
    values = json.loads((made / "scores.json").read_text())["fvd"]
    assert len(values) == 2 and values[0] < values[1]


def test_what_is_missing_is_said_at_once(tmp_path, toy, i3d, capsys):
    made = videos(tmp_path / "made", 3)
    captioned(made, ["caption a", "caption a", ""])
    (made / "broken.mp4").write_bytes(b"no video")
    write_video(made / "short.mp4", read_video(made / "000.mp4")[0][:5], 8)
    assert main(["evaluate", str(made), "--protocol", "ucf101", "--i3d", str(i3d)]) == 2
    said = capsys.readouterr().err
    for line in (
        "not what the protocol asks for (a toy):",
        "- 1 videos cannot be read",
        "- 1 videos have fewer than 16 frames (short.mp4 has 5)",
        "- 3 videos, expected 4",
        "- 1 videos have no caption in captions.jsonl, captions.csv or a .txt (002.mp4)",
        "- 1 captions, expected 2",
        "- no real videos: --reference DIR",
        "- no weights for clipsim, consistency: --clip DIR: a CLIP model",
        "--partial",
    ):
        assert line in said
    assert not (made / "scores.json").exists()


def test_what_there_is_can_be_measured(tmp_path, toy, i3d, clip, capsys):
    made = videos(tmp_path / "made", 3)
    options = ["--protocol", "ucf101", "--partial"]
    assert main(["evaluate", str(made), *options, "--clip", str(clip)]) == 0
    table = json.loads((made / "scores.json").read_text())
    assert {"clipsim", "consistency"} <= set(table) and "fvd" not in table
    assert "3 videos, expected 4" in table["missing"] and "no real videos: --reference DIR" in table["missing"]
    assert main(["evaluate", str(made), *options]) == 2
    assert "nothing can be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "lvdm", "--reference", "none"], "--reference none: no such folder"),
        (["--protocol", "reconstruction"], "--reference: missing, expected the folder of the originals"),
        (["--protocol", "lvdm", "--motion", "m"], "--frechet and --motion: found them with --protocol"),
        (["--reference", "none"], "--reference: found it without --frechet"),
    ],
)
def test_impossible_options(tmp_path, options, message, capsys):
    made = videos(tmp_path / "made", 2, captions=False)
    assert main(["evaluate", str(made), *options]) == 2
    assert message in capsys.readouterr().err


def test_captions_and_frames_in_clip(clip, tmp_path):
    network = CaptionNetwork(clip, CPU)
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 24, 3), dtype=np.uint8)
    features = network.frames(frames)
    assert features.shape == (3, 6) and torch.allclose(network.frames(frames[1:2])[0], features[1], atol=1e-5)
    assert network.caption("abc").shape == (6,) and not torch.equal(network.caption("abc"), network.caption("abd"))
    assert network.caption("abc " * 50).isfinite().all()  # cut to the longest it reads
    with pytest.raises(feature_networks.InputError, match="no config.json, preprocessor_config.json"):
        CaptionNetwork(tmp_path, CPU)


def test_frames_in_inception(tmp_path):
    """Files of other networks are refused, whatever their kind."""
    from safetensors.torch import save_file

    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth does not fit FID's Inception"):
        FrameNetwork(tmp_path / "other.pth", CPU)
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors does not fit FID's Inception"):
        FrameNetwork(tmp_path / "other.safetensors", CPU)


class GivenFeatures(torch.nn.Module):
    """What stands in a metric's place for a network: its inputs are features already."""

    num_features = 48

    def forward(self, features):
        return features


def test_distances_of_frames_are_those_of_torchmetrics(tmp_path, monkeypatch):
    """FID's Inception with drawn weights, read by our loader; its features' distance by the kernels and the peer."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *arguments: None)
        drawn = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    torch.manual_seed(0)
    for weight in drawn.parameters():
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    torch.save(drawn.state_dict(), tmp_path / "inception.pth")
    frames = np.random.default_rng(0).integers(0, 255, (5, 20, 24, 3), dtype=np.uint8)
    features, logits = FrameNetwork(tmp_path / "inception.pth", CPU)(frames)
    assert features.shape == (5, 2048) and logits.shape == (5, 1008)
    with torch.no_grad():
        assert torch.equal(drawn(torch.from_numpy(frames).movedim(-1, 1).contiguous())[0], features)
    features = features[:, features.std(dim=0).argsort()[-48:]].double()
    peer = FrechetInceptionDistance(feature=GivenFeatures()).set_dtype(torch.float64)
    peer.update(features[:2], real=True)
    peer.update(features[2:], real=False)
    # That one takes eigenvalues of a product without full rank, in double precision.
    assert frechet_distance(features[:2], features[2:]) == pytest.approx(float(peer.compute()), rel=1e-4)


def test_frames_in_i3d(i3d):
    network = ClipNetwork(i3d, CPU)
    clip = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)
    assert network(clip).shape == (5,) and torch.equal(network(clip), network(clip))
    assert frechet_distance(torch.stack([network(clip)] * 3), torch.stack([network(clip)] * 2)) < 1e-9


def test_reconstructions(tmp_path):
    originals = videos(tmp_path / "originals", 2, captions=False)
    shutil.copytree(originals, tmp_path / "made")
    for path in (tmp_path / "made").glob("*.mp4"):
        write_video(path, np.clip(read_video(path)[0].astype(int) + 20, 0, 255).astype(np.uint8), 8)
    options = ["--protocol", "reconstruction", "--reference", str(originals)]
    assert main(["evaluate", str(tmp_path / "made"), *options]) == 0
    table = json.loads((tmp_path / "made" / "scores.json").read_text())
    pairs = [
        [torch.from_numpy(read_video(folder / name)[0]) / 255 for folder in (tmp_path / "made", originals)]
        for name in ("000.mp4", "001.mp4")
    ]
    for measure, function in (("psnr", psnr), ("ssim", ssim)):
        rgb = np.mean([float(function(*pair).mean()) for pair in pairs])
        yuv = np.mean([float(function(*map(to_yuv, pair)).mean()) for pair in pairs])
        assert table[f"{measure}_rgb"] == pytest.approx(rgb, abs=1e-4)
        assert table[f"{measure}_yuv"] == pytest.approx(yuv, abs=1e-4)
    (originals / "001.mp4").unlink()
    assert main(["evaluate", str(tmp_path / "made"), *options]) == 2


def test_a_sheet_for_people(tmp_path, capsys):
    both = tmp_path / "both"
    videos(both / "ours", 2)
    videos(both / "theirs", 2, first=4)
    out = tmp_path / "sheet"
    assert main(["evaluate", str(both), "--protocol", "harivo", "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "sheet.csv").open(newline="")))
    key = {row["video"]: row for row in csv.DictReader((out / "key.csv").open(newline=""))}
    assert [row["video"] for row in rows] == [f"{number:05d}.mp4" for number in range(1, 5)]
    assert not any(word in (out / "sheet.csv").read_text() for word in ("ours", "theirs"))
    for row in rows:
        original = both / key[row["video"]]["file"]
        assert (out / row["video"]).read_bytes() == original.read_bytes()
        assert row["caption"] == f"caption {'abcdefgh'[int(original.stem)]}"

    def filled(name, answer):
        with (out / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow({**row, **{column: answer(key[row["video"]]["model"]) for column in list(row)[2:]}})
        return str(out / name)

    first, second = filled("anna.csv", lambda model: int(model == "ours")), filled("bert.csv", lambda model: 1)
    assert main(["evaluate", str(out), "--protocol", "harivo", "--sheets", first, second]) == 0
    table = json.loads((out / "scores.json").read_text())
    assert (table["raters"], table["videos"], table["agreement"]) == (2, 4, 0.5)
    assert set(table["ours"].values()) == {1.0} and set(table["theirs"].values()) == {0.5}
    third = filled("cora.csv", lambda model: "perhaps")
    assert main(["evaluate", str(out), "--protocol", "harivo", "--sheets", third]) == 2
    assert "cora.csv, line 2: follows_caption is 'perhaps', expected 1 (yes) or 0 (no)" in capsys.readouterr().err
    assert main(["evaluate", str(both), "--protocol", "harivo", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
