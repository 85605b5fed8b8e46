"""Reading files of the released layouts: nesting, prefixes, copies of weights, and what surrounds them."""

import argparse
import collections
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from weft.kernels.networks.lvdm import LatentVideoUNet, TextToVideoUNet
from weft.kernels.networks.video_autoencoder import VideoAutoencoder
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.checkpoint import MODEL, TEXT_ENCODER, VAE, ReadOptions, read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.lvdm import SCALINGS

# Of the output's standard deviation: the same products in another order round differently.
TOLERANCE = 3e-5
VIDEO, TIMES = torch.linspace(-2, 2, 2 * 4 * 4 * 6 * 8).sin().view(2, 4, 4, 6, 8), torch.tensor([3, 700])


@pytest.fixture
def networks(released):
    return released.network(released.short), released.network(released.autoencoder)


def lightning(tensors):
    """A training checkpoint around weights, with everything that frameworks leave in there."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    attributes = type("AttributeDict", (dict,), {"__module__": name})
    module = types.ModuleType(name)
    module.ModelCheckpoint, module.AttributeDict = callback, attributes
    state = callback()
    state.best_model_score = torch.tensor(0.5)
    extra = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "1.5.9",
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6e-5}]}],
        "lr_schedulers": [collections.defaultdict(list, base_lrs=[np.float64(6e-5)])],
        "callbacks": {callback: {"best_model_path": "x.ckpt"}, "other": state},
        "hyper_parameters": attributes(scale_factor=np.array([0.33]), arguments=argparse.Namespace(seed=23)),
    }
    return {**extra, "state_dict": tensors}, module


def save_lightning(tensors, path):
    content, module = lightning(tensors)
    parents = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    with pytest.MonkeyPatch.context() as patch:
        for name in [*parents, module.__name__]:
            patch.setitem(sys.modules, name, module)
        torch.save(content, path)


def save_bare(tensors, path):
    torch.save(tensors, path)


def save_old_format(tensors, path):
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)


def save_safetensors(tensors, path):
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("save", [save_lightning, save_bare, save_old_format, save_safetensors])
@torch.no_grad()
def test_diffusion_checkpoint(tmp_path, released, networks, relative_error, save):
    path = tmp_path / "short_sky.ckpt"
    save(released.file_tensors(*networks), path)
    checkpoint = read(path)
    assert "pytorch_lightning.callbacks.model_checkpoint" not in sys.modules
    assert (checkpoint.name, checkpoint.family) == ("short_sky.ckpt", "lvdm")
    assert set(checkpoint.components) == {MODEL, VAE}
    model, vae = checkpoint.component(MODEL), checkpoint.component(VAE)
    assert (model.network, model.config) == (LatentVideoUNet, released.short)
    assert (vae.network, vae.config) == (VideoAutoencoder, released.autoencoder)
    unet, autoencoder = networks
    assert relative_error(model.build()(VIDEO, TIMES), unet(VIDEO, TIMES)) < TOLERANCE
    clip = VIDEO[:, :3].repeat(1, 1, 1, 2, 2)[..., :12, :16]
    assert relative_error(vae.build().encode(clip), autoencoder.encode(clip)) < TOLERANCE
    latents = VIDEO[:, :, :2]
    assert relative_error(vae.build().decode(latents), autoencoder.decode(latents)) < TOLERANCE


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@torch.no_grad()
def test_denoiser_alone(tmp_path, released, networks, relative_error, prefix):
    path = tmp_path / "sky.safetensors"
    unet, _ = networks
    save_safetensors({prefix + name: tensor.half() for name, tensor in unet.state_dict().items()}, path)
    checkpoint = read(path)
    assert set(checkpoint.components) == {MODEL}
    built = checkpoint.component(MODEL).build()
    # float16 weights: 2^-11 relative.
    assert relative_error(built(VIDEO, TIMES), unet(VIDEO, TIMES)) < 0.02
    with pytest.raises(CheckpointError, match="sky.safetensors has no vae, it has: diffusion_model"):
        checkpoint.component(VAE)


@torch.no_grad()
def test_autoencoder_alone(tmp_path, released, networks, relative_error):
    path = tmp_path / "ae_taichi.ckpt"
    _, autoencoder = networks
    losses = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    save_lightning({**released.autoencoder_tensors(autoencoder), **losses}, path)
    checkpoint = read(path)
    assert set(checkpoint.components) == {VAE}
    latents = VIDEO[:, :, :2]
    assert relative_error(checkpoint.component(VAE).build().decode(latents), autoencoder.decode(latents)) < TOLERANCE
    assert (checkpoint.latent.spatial, checkpoint.latent.temporal) == (4, 2)


@torch.no_grad()
def test_mask_conditional_checkpoint(tmp_path, released, networks, relative_error):
    path = tmp_path / "sky_pred.ckpt"
    unet = released.network(released.prediction)
    save_lightning(released.file_tensors(unet, networks[1]), path)
    checkpoint = read(path)
    assert checkpoint.component(MODEL).config == released.prediction
    assert checkpoint.latent.channels == 4
    built, x = checkpoint.component(MODEL).build(), torch.cat([VIDEO, VIDEO[:, :1].sign()], 1)
    for level in (None, torch.tensor([100, 0])):
        assert relative_error(built(x, TIMES, noise_level=level), unet(x, TIMES, noise_level=level)) < TOLERANCE


class TestAveragedWeights:
    @torch.no_grad()
    def test_choice(self, tmp_path, released, networks):
        path = tmp_path / "sky.ckpt"
        unet, autoencoder = networks
        averaged = released.network(released.short)
        for weight in averaged.parameters():
            weight.mul_(0.5)
        save_lightning(released.file_tensors(unet, autoencoder, averaged), path)
        found = {ema: read(path, ReadOptions(ema=ema)).component(MODEL).tensors for ema in (False, True)}
        assert found[True].keys() == found[False].keys()
        assert all(torch.equal(found[True][name], 0.5 * found[False][name]) for name in found[True])

    def test_absent_copy_is_named(self, tmp_path, released, networks):
        path = tmp_path / "sky.ckpt"
        save_bare(released.file_tensors(*networks), path)
        with pytest.raises(CheckpointError, match=r"sky.ckpt has no averaged .*model_ema.diffusion_model.* is missing"):
            read(path, ReadOptions(ema=True))

    def test_incomplete_copy_is_refused(self, tmp_path, released, networks):
        path = tmp_path / "sky.ckpt"
        tensors = released.file_tensors(*networks, networks[0])
        del tensors["model_ema.diffusion_modelout2weight"]
        save_bare(tensors, path)
        with pytest.raises(CheckpointError, match="model_ema.diffusion_modelout2weight is missing"):
            read(path, ReadOptions(ema=True))

    def test_files_without_a_denoiser_do_not_mind(self, tmp_path, released, networks):
        path = tmp_path / "ae_sky.ckpt"
        save_bare(released.autoencoder_tensors(networks[1]), path)
        assert set(read(path, ReadOptions(ema=True)).components) == {VAE}


@torch.no_grad()
def test_text_to_video_checkpoint(tmp_path, released, relative_error):
    path = tmp_path / "model.ckpt"
    unet = released.network(released.text_to_video)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.state_dict().items()}
    stock_vae = {"encoder.conv_in.weight": torch.rand(8, 3, 3, 3), "decoder.conv_in.bias": torch.rand(8)}
    stock_text = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.embeddings.token_embedding.weight": torch.rand(9, 24),
    }
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in stock_vae.items()}
    tensors |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in stock_text.items()}
    save_lightning({**tensors, "betas": torch.rand(1000)}, path)
    checkpoint = read(path)
    model = checkpoint.component(MODEL)
    assert (model.network, model.config) == (TextToVideoUNet, released.text_to_video)
    context = torch.linspace(-1, 1, 2 * 5 * 24).cos().view(2, 5, 24)
    assert relative_error(model.build()(VIDEO, TIMES, context), unet(VIDEO, TIMES, context)) < TOLERANCE
    for role, config, stock in ((VAE, "stable diffusion", stock_vae), (TEXT_ENCODER, "clip l", stock_text)):
        part = checkpoint.component(role)
        assert (part.network, part.config) == (None, config)
        assert part.tensors.keys() == stock.keys()
        assert all(torch.equal(part.tensors[name], tensor) for name, tensor in stock.items())
        with pytest.raises(CheckpointError, match="built by ComfyUI"):
            part.build()
    assert checkpoint.schedule == NoiseSchedule(0.00085, 0.012)
    latent = checkpoint.latent
    assert (latent.channels, latent.spatial, latent.temporal, latent.scale, latent.shift) == (4, 8, 1, 0.18215, 0.0)


class TestScaling:
    @pytest.fixture
    def path(self, tmp_path, released, networks):
        def save(name):
            save_bare(released.file_tensors(*networks), tmp_path / name)
            return tmp_path / name

        return save

    @pytest.mark.parametrize(
        ("name", "scale", "shift"),
        [
            ("short_sky.ckpt", 0.33422927, 1.4606637),
            ("Short_TaiChi.ckpt", 0.175733933, 0.03291025),
            ("ucf.ckpt", 0.220142075, 0.5837740898),
        ],
    )
    def test_by_file_name(self, path, name, scale, shift):
        checkpoint = read(path(name))
        assert (checkpoint.latent.scale, checkpoint.latent.shift) == (scale, shift)
        assert checkpoint.schedule == NoiseSchedule(0.0015, 0.0155)

    @pytest.mark.parametrize("choice", SCALINGS)
    def test_by_choice(self, path, choice):
        """The user's choice counts more than the file's name."""
        latent = read(path("sky.ckpt"), ReadOptions(scaling=choice)).latent
        assert (latent.scale, latent.shift) == SCALINGS[choice]

    def test_unknown_data_set(self, path):
        with pytest.raises(
            CheckpointError, match=r"model.ckpt: the scale .* Choose the data set .*: sky, taichi, ucf101"
        ):
            read(path("model.ckpt"))

    def test_unknown_choice(self, path):
        with pytest.raises(CheckpointError, match="sky.ckpt: unknown latent scaling 'moon', expected one of sky, "):
            read(path("sky.ckpt"), ReadOptions(scaling="moon"))
