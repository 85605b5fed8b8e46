"""Files that are no models, damaged, hostile, or of another model: refused in words, and nothing in them is run."""

import os
import pickle
import struct
import sys
import zipfile

import numpy
import pytest
import safetensors.torch
import torch

from weft.model_loaders.checkpoint import read
from weft.model_loaders.errors import CheckpointError


@pytest.fixture
def tensors(released):
    return released.file_tensors(released.network(released.short), released.network(released.autoencoder))


@pytest.fixture
def refused(tmp_path):
    """Reads a file that holds the given bytes, or that a function writes; gives the text of the refusal."""

    def read_refused(name, content):
        path = tmp_path / name
        content(path) if callable(content) else path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert name in str(caught.value)
        return str(caught.value)

    return read_refused


def save(tensors):
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    return lambda path: safetensors.torch.save_file(copies, path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00", "a PNG image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01", "a JPEG image"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "a video"),
        (b"<!DOCTYPE html><html><body>403</body></html>", "a text or web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a text or web page"),
        (b'{"error": "not found"}', "a text or web page"),
        (bytes(range(160, 192)), "of an unknown kind"),
        (b"", "empty"),
    ],
)
def test_other_kinds_of_files(refused, content, kind):
    text = refused("model.ckpt", content)
    assert f"is {kind}" in text and "expected a .safetensors file or a PyTorch checkpoint" in text


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="model.ckpt: there is no such file"):
        read(tmp_path / "model.ckpt")


class TestDamaged:
    @pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
    def test_safetensors_cut_off(self, tmp_path, refused, tensors, share):
        save(tensors)(tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()
        assert "damaged or cut off" in refused("model.safetensors", content[: int(len(content) * share)])

    @pytest.mark.parametrize("length", [10**9, 2**63, 2**64 - 1])
    def test_safetensors_with_a_huge_header(self, refused, length):
        text = refused("model.safetensors", struct.pack("<Q", length) + b'{"a": {}}')
        assert "damaged or cut off" in text

    def test_safetensors_whose_tensors_overlap(self, refused):
        entry = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
        header = b'{"a":' + entry + b',"b":' + entry + b"}"
        assert "damaged" in refused("model.safetensors", struct.pack("<Q", len(header)) + header + bytes(8))

    @pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
    def test_checkpoint_cut_off(self, tmp_path, refused, tensors, share):
        torch.save({"state_dict": tensors}, tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()
        assert "is not a PyTorch checkpoint" in refused("model.ckpt", content[: int(len(content) * share)])

    @pytest.mark.parametrize("seed", range(8))
    def test_checkpoint_with_wrong_bytes(self, tmp_path, refused, seed):
        """Bytes of the pickle are changed at random: whatever that leads to ends as a refusal."""
        torch.save({"state_dict": {f"layer{i}.weight": torch.zeros(2) for i in range(30)}}, tmp_path / "whole")
        with zipfile.ZipFile(tmp_path / "whole") as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        generator = numpy.random.default_rng(seed)

        def write(path):
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in entries.items():
                    if name.endswith("data.pkl"):
                        content = bytearray(content)
                        for place in generator.integers(2, len(content), 40):
                            content[place] = generator.integers(256)
                    archive.writestr(name, bytes(content))

        refused("model.ckpt", write)

    @pytest.mark.parametrize("content", [[torch.zeros(2)], {"state_dict": {}}, {0: torch.zeros(2)}, 7])
    def test_checkpoint_without_named_tensors(self, refused, content):
        assert "holds no tensors by name" in refused("model.ckpt", lambda path: torch.save(content, path))


def test_zip_bomb(refused):
    def write(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 28))

    text = refused("model.ckpt", write)
    assert "would unpack to 268,435,456" in text and "not opened" in text


class Command:
    """Unpickled by a trusting reader, it runs a command."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestCode:
    @pytest.fixture
    def mark(self, tmp_path):
        """A file that the code in a pickle would make."""
        path = tmp_path / "executed"
        yield str(path)
        assert not path.exists()

    @pytest.mark.parametrize(
        "command",
        [
            lambda mark: Command(os.system, f"touch {mark}"),
            lambda mark: Command(eval, f"open({mark!r}, 'w').close()"),
            lambda mark: Command(open, mark, "w"),
        ],
        ids=["system", "eval", "open"],
    )
    def test_in_a_checkpoint(self, refused, mark, command):
        content = {"state_dict": {"conv_in.weight": torch.zeros(2)}, "hook": command(mark)}
        text = refused("model.ckpt", lambda path: torch.save(content, path))
        assert "holds code (" in text and "was not opened" in text and ".safetensors" in text

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_in_a_plain_pickle(self, refused, mark, protocol):
        content = pickle.dumps(Command(os.system, f"touch {mark}"), protocol=protocol)
        assert "is not a PyTorch checkpoint that holds weights alone" in refused("model.pt", content)

    def test_under_a_name_that_is_let_through(self, tmp_path, mark, released, tensors):
        """Objects of frameworks are replaced, never called: numpy would write a file here."""
        path = tmp_path / "sky.ckpt"
        assert "numpy" in sys.modules
        torch.save({"state_dict": tensors, "hook": Command(numpy.savetxt, mark, [1.0])}, path)
        assert read(path).family == "lvdm"


class TestOtherModels:
    def test_lora(self, refused):
        names = ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"]
        assert "is a LoRA" in refused("style.safetensors", save({name: torch.zeros(4, 4) for name in names}))

    def test_image_model(self, refused):
        names = {"input_blocks.0.0.weight": (320, 4, 3, 3), "middle_block.1.norm.weight": (8,)}
        content = {f"model.diffusion_model.{name}": torch.zeros(shape) for name, shape in names.items()}
        assert "is an image model" in refused("sd15.safetensors", save(content))

    def test_controlnet(self, refused):
        content = {"control_model.zero_convs.0.0.weight": torch.zeros(2)}
        assert "is a ControlNet" in refused("canny.safetensors", save(content))
        content = {"lora_controlnet": torch.zeros(0), "zero_convs.0.0.weight": torch.zeros(2)}
        assert "is a ControlNet" in refused("control_lora.safetensors", save(content))

    def test_unknown_names(self, refused):
        text = refused("x.safetensors", save({"bert.encoder.layer.0.weight": torch.zeros(2)}))
        assert "is not a model that this pack knows (1 tensors such as bert.encoder.layer.0.weight)" in text


class TestTensorsThatDoNotFit:
    """One tensor of a good file is changed; the refusal names it, its shape, and what was expected."""

    UNET, VAE = "model.diffusion_model.", "first_stage_model."

    def test_the_file_is_good_without_changes(self, tmp_path, tensors):
        save(tensors)(tmp_path / "sky.safetensors")
        assert len(read(tmp_path / "sky.safetensors").components) == 2

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (UNET + "out.2.weight", "'conv_out.weight'"),
            (
                UNET + "input_blocks.1.0.in_layers.2.weight",
                "skeleton.down.0.residual.conv1.weight (32, 32, 3, 3) is miss",
            ),
            (
                UNET + "middle_block.1.norm_t.bias",
                "skeleton.middle.0.attention.temporal_norm.norm.bias (64,) is missing",
            ),
            (VAE + "quant_conv.conv.bias", "quant_conv.bias (8,) is missing"),
            (VAE + "post_quant_conv.conv.weight", "'post_quant_conv.weight'"),
        ],
    )
    def test_missing(self, refused, tensors, name, message):
        tensors = {key: tensor for key, tensor in tensors.items() if key not in (name, name.replace(".conv.", "."))}
        assert message in refused("sky.safetensors", save(tensors))

    @pytest.mark.parametrize("name", [UNET + "input_blocks.1.0.extra.weight", VAE + "encoder.stray"])
    def test_unexpected(self, refused, tensors, name):
        text = refused("sky.safetensors", save({**tensors, name: torch.zeros(2)}))
        assert "(2,) is unexpected" in text and name.rsplit(".", 1)[-1] in text

    def test_two_names_of_one_tensor(self, refused, tensors):
        twin = {self.UNET + "output_blocks.1.1.conv.weight": torch.zeros(64, 64, 1, 3, 3)}
        text = refused("sky.safetensors", save({**tensors, **twin}))
        assert "two tensors are both skeleton.up.1.upsample.conv.weight" in text

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            (UNET + "middle_block.0.out_layers.3.bias", (5,), "has shape (5,), expected (64,)"),
            (UNET + "time_embed.0.weight", (128, 31), "has shape (128, 31), expected (128, 32)"),
            (
                UNET + "input_blocks.1.0.in_layers.2.weight",
                (32, 32, 3, 3, 3),
                "(32, 32, 3, 3, 3), expected (32, 32, 3, 3)",
            ),
            (UNET + "input_blocks.0.0.weight", (32,), "damaged, or of another model"),
            (UNET + "middle_block.1.relative_position_k.embeddings_table", (9, 0), "damaged, or of another model"),
            (UNET + "middle_block.1.relative_position_k.embeddings_table", (9, 65), "damaged, or of another model"),
            (UNET + "middle_block.0.out_layers.3.weight", (0, 64, 1, 3, 3), "damaged, or of another model"),
            (VAE + "decoder.conv_out.conv.weight", (3, 32, 1, 1, 1), "(3, 32, 1, 1, 1), expected (3, 32, 3, 3, 3)"),
            (VAE + "encoder.conv_first.conv.weight", (16,), "damaged, or of another model"),
        ],
    )
    def test_misshapen(self, refused, tensors, name, shape, message):
        assert message in refused("sky.safetensors", save({**tensors, name: torch.zeros(shape)}))

    def test_not_floating_point(self, refused, tensors):
        quantised = {self.UNET + "out.2.weight": torch.ones(4, 32, 1, 3, 3, dtype=torch.int8)}
        text = refused("sky.safetensors", save({**tensors, **quantised}))
        assert "conv_out.weight holds torch.int8 values, expected floating point" in text

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", [UNET + "out.2.weight", VAE + "decoder.conv_out.conv.bias"])
    def test_not_finite(self, refused, tensors, name, value):
        broken = tensors[name].clone()
        broken.view(-1)[-1] = value
        text = refused("sky.safetensors", save({**tensors, name: broken}))
        assert "holds NaN or infinite values in" in text and "expected finite weights" in text
