"""This package's own files: written whole or not at all, and read back as they were."""

import dataclasses
import json

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.networks.lvdm import LatentVideoUNet, TextToVideoUNet
from weft.kernels.networks.video_autoencoder import VideoAutoencoder
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders import files
from weft.model_loaders.bundle import describe, description_tensor, save_bundle
from weft.model_loaders.checkpoint import MODEL, TEXT_ENCODER, VAE, LatentSpec, ReadOptions, read
from weft.model_loaders.errors import CheckpointError

CAPTIONS = CaptionEncoderConfig(vocabulary=("red", "circle"), width=24, layers=1, heads=2, max_tokens=6)
LATENT = LatentSpec(
    channels=4,
    spatial=4,
    temporal=2,
    scale=0.5,
    shift=-1.25,
    rgb_factors=((0.1, 0.2, 0.3),) * 4,
    rgb_bias=(0.0, 0.5, 1.0),
)
SCHEDULE = NoiseSchedule(0.001, 0.02, steps=500)
METADATA = {"dataset": "shapes", "dataset_seed": 7, "revision": "abc", "scores": {"colour": 0.99}}
KINDS = {MODEL: TextToVideoUNet, VAE: VideoAutoencoder, TEXT_ENCODER: CaptionEncoder}


@pytest.fixture
def networks(released):
    torch.manual_seed(0)
    configs = {MODEL: released.text_to_video, VAE: released.autoencoder, TEXT_ENCODER: CAPTIONS}
    return {role: KINDS[role](config) for role, config in configs.items()}


def save(path, networks, **changes):
    given = {"system": "lvdm", "latent": LATENT, "schedule": SCHEDULE, "metadata": METADATA, **changes}
    save_bundle(path, networks, **given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_round_trip(tmp_path, networks, dtype):
    path = tmp_path / "new folder" / "lvdm.safetensors"
    save(path, networks, dtype=dtype)
    assert [file.name for file in path.parent.iterdir()] == ["lvdm.safetensors"]
    checkpoint = read(path)
    assert (checkpoint.name, checkpoint.family) == ("lvdm.safetensors", "lvdm")
    assert (checkpoint.latent, checkpoint.schedule) == (LATENT, SCHEDULE)
    assert set(checkpoint.components) == set(networks)
    for role, network in networks.items():
        component = checkpoint.component(role)
        assert (component.network, component.config) == (type(network), network.config)
        built = component.build().state_dict()
        expected = network.state_dict()
        assert built.keys() == expected.keys()
        assert all(torch.equal(built[name], expected[name].to(dtype).float()) for name in expected)


def test_metadata_says_where_the_model_comes_from(tmp_path, networks):
    path = tmp_path / "lvdm.safetensors"
    save(path, networks)
    found = read(path).metadata
    assert found["dataset"] == "shapes" and found["revision"] == "abc"
    assert json.loads(found["dataset_seed"]) == 7
    assert json.loads(found["scores"]) == {"colour": 0.99}
    assert set(found) == set(METADATA)


def test_what_the_user_chooses_wins(tmp_path, networks):
    path = tmp_path / "lvdm.safetensors"
    save(path, networks)
    found = read(path, ReadOptions(scaling="sky")).latent
    assert found == dataclasses.replace(LATENT, scale=0.33422927, shift=1.4606637)
    with pytest.raises(CheckpointError, match="lvdm.safetensors has no averaged .EMA. weights"):
        read(path, ReadOptions(ema=True))


@pytest.mark.parametrize("existing", [b"old content", None])
def test_failed_writing_leaves_nothing(tmp_path, monkeypatch, networks, existing):
    path = tmp_path / "lvdm.safetensors"
    if existing:
        path.write_bytes(existing)

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"the first part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, networks)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({path.name: existing} if existing else {})


def test_unknown_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot hold Linear; it knows TextToVideoUNet, "):
        save(tmp_path / "x.safetensors", {MODEL: nn.Linear(2, 2)})
    assert list(tmp_path.iterdir()) == []


def test_video_model_without_text(tmp_path, released):
    network = LatentVideoUNet(released.prediction)
    save(tmp_path / "x.safetensors", {MODEL: network}, dtype=torch.float32)
    component = read(tmp_path / "x.safetensors").component(MODEL)
    assert (component.network, component.config) == (LatentVideoUNet, released.prediction)


class TestFilesOfStockSaveNodes:
    """They keep tensors only, under ComfyUI's prefixes: the description travels as a tensor."""

    PREFIXES = {
        MODEL: "model.diffusion_model.",
        VAE: "first_stage_model.",
        TEXT_ENCODER: "cond_stage_model.caption.transformer.",
    }

    @pytest.fixture
    def resaved(self, tmp_path, networks):
        """Writes what the stock nodes make of a bundle: the given roles, under the given name of the description."""
        save(tmp_path / "lvdm.safetensors", networks)
        checkpoint = read(tmp_path / "lvdm.safetensors")

        def write(roles, description_name):
            tensors = {description_name: description_tensor(describe(checkpoint))}
            for role in roles:
                weights = checkpoint.component(role).tensors
                tensors |= {self.PREFIXES[role] + name: tensor for name, tensor in weights.items()}
            safetensors.torch.save_file(tensors, tmp_path / "saved.safetensors", metadata={"prompt": "{}"})
            return checkpoint, tmp_path / "saved.safetensors"

        return write

    @pytest.mark.parametrize("roles", [[MODEL], [MODEL, VAE, TEXT_ENCODER]])
    def test_reads_back(self, resaved, roles):
        original, path = resaved(roles, "weft.description")
        checkpoint = read(path)
        assert set(checkpoint.components) == set(roles)
        assert checkpoint.latent == LATENT and checkpoint.schedule == SCHEDULE
        for role in roles:
            found, expected = checkpoint.component(role), original.component(role)
            assert (found.network, found.config) == (expected.network, expected.config)
            assert found.tensors.keys() == expected.tensors.keys()
            assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)

    def test_without_description_shapes_say_what_it_is(self, tmp_path, resaved):
        """A file from which a tool dropped the description is read like a released one."""
        original, path = resaved([MODEL], "something.else")
        tensors = safetensors.torch.load_file(path)
        del tensors["something.else"]
        safetensors.torch.save_file(tensors, path)
        component = read(path, ReadOptions(scaling="sky")).component(MODEL)
        assert component.config == original.component(MODEL).config


class TestBadDescriptions:
    @pytest.fixture
    def refused(self, tmp_path, networks):
        """Reads a bundle whose description was changed; gives the text of the refusal."""

        def change(edit):
            path = tmp_path / "lvdm.safetensors"
            save(path, networks)
            with safetensors.safe_open(path, "pt") as file:
                text = file.metadata()["weft"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            safetensors.torch.save_file(tensors, path, metadata={"weft": edit(text)})
            with pytest.raises(CheckpointError, match="^lvdm.safetensors") as caught:
                read(path)
            return str(caught.value)

        return change

    @pytest.mark.parametrize(
        "text", ["", "[]", "7", '{"components": []}', '{"components": {"diffusion_model": 3}}', "{" * 5000]
    )
    def test_nonsense(self, refused, text):
        assert "update the pack, or export the file again" in refused(lambda _: text)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"TextToVideoUNet"', '"FutureUNet"'),
            ('"context_width"', '"context_size"'),
            ('"vae"', '"sound"'),
            ('"linear_start"', '"cosine_start"'),
        ],
    )
    def test_of_a_newer_pack(self, refused, old, new):
        assert "update the pack" in refused(lambda text: text.replace(old, new))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"context_width": 24', '"context_width": 25', "expected (64, 25)"),
            ('"model_channels": 32', '"model_channels": "32"', "cannot be built"),
            ('"num_heads": 8', '"num_heads": 0', "cannot be built"),
            ('"channel_mult": [1, 2]', '"channel_mult": [1, 2, 4]', "is missing"),
        ],
    )
    def test_of_another_network(self, refused, old, new, message):
        assert message in refused(lambda text: text.replace(old, new))
