"""What the tests of kernels and loaders share: stored numbers of the released models, and how they are compared."""

import dataclasses
import functools
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from weft.benchmarks.peers.lvdm import UNet
from weft.benchmarks.peers.lvdm_autoencoder import Autoencoder
from weft.kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoderConfig

DATA = Path(__file__).resolve().parents[1] / "data" / "lvdm"

Parity = tuple[dict, dict[str, Tensor]]


@pytest.fixture(scope="session")
def parity() -> Callable[[str], Parity]:
    """Reads stored numbers by name: what the .json says, and the tensors; float16 weights become float32."""

    @functools.cache
    def load(name: str) -> Parity:
        tensors = safetensors.torch.load(lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes()))
        tensors = {key: tensor.float() if tensor.dtype == torch.float16 else tensor for key, tensor in tensors.items()}
        return json.loads((DATA / f"{name}.json").read_text()), tensors

    return load


@pytest.fixture(scope="session")
def manifest() -> Callable[[str], dict[str, Tensor]]:
    """Reads the names and shapes of a released file as tensors of one byte each; the meta device is slow to load."""

    def load(name: str) -> dict[str, Tensor]:
        shapes = json.loads(lzma.decompress((DATA / f"{name}.keys.json.xz").read_bytes()))
        byte = torch.zeros((), dtype=torch.float8_e4m3fn)
        return {key: byte.expand(shape) for key, shape in shapes.items()}

    return load


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Largest difference in units of the expected tensor's standard deviation."""

    def error(found: Tensor, expected: Tensor) -> float:
        assert found.shape == expected.shape
        return float((found.double() - expected.double()).abs().max() / expected.double().std())

    return error


class Released:
    """Tiny networks of released composition and names, with random weights, and the tensors of released files."""

    short = LatentVideoUNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,))
    prediction = dataclasses.replace(short, in_channels=5, noise_levels=251)
    text_to_video = TextToVideoUNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(1,),
        context_width=24,
        temporal_length=3,
    )
    autoencoder = VideoAutoencoderConfig(n_hiddens=16, downsample=(2, 4, 4))

    @staticmethod
    def network(config: LatentVideoUNetConfig | TextToVideoUNetConfig | VideoAutoencoderConfig) -> nn.Module:
        """The released composition of a configuration; every weight is drawn, norms around one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Autoencoder(config) if isinstance(config, VideoAutoencoderConfig) else UNet(config)
            for weight in network.parameters():
                noise = torch.randn(weight.shape)
                weight.data = weight.data + 0.1 * noise if weight.ndim == 1 else noise / weight[0].numel() ** 0.5
        return network

    @staticmethod
    def autoencoder_tensors(network: nn.Module) -> dict[str, Tensor]:
        """As released: the weight of every same-padded convolution under two names."""
        tensors = network.state_dict()
        doubles = {name.replace(".conv.weight", ".weight"): tensors[name] for name in tensors if ".conv.weight" in name}
        return {**tensors, **doubles}

    @classmethod
    def file_tensors(
        cls, unet: nn.Module, autoencoder: nn.Module, averaged: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """A diffusion checkpoint: denoiser, averaged copy, autoencoder and schedule vectors under their prefixes."""
        tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.state_dict().items()}
        tensors |= {f"first_stage_model.{name}": value for name, value in cls.autoencoder_tensors(autoencoder).items()}
        tensors |= {"betas": torch.rand(1000), "posterior_mean_coef2": torch.rand(1000)}
        if averaged is not None:
            copies = {
                f"model_ema.diffusion_model{name.replace('.', '')}": x for name, x in averaged.state_dict().items()
            }
            tensors |= {**copies, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
        return tensors


@pytest.fixture(scope="session")
def released() -> type[Released]:
    """Tiny released models and files."""
    return Released
