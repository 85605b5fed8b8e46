"""LVDM: both denoisers, encoding and decoding by the 3D autoencoder."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..kernels.networks.lvdm import (
    LatentVideoUNet,
    LatentVideoUNetConfig,
    TextToVideoUNet,
    TextToVideoUNetConfig,
)
from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from ..model_loaders.lvdm import AUTOENCODER_KEYS, UNET_KEYS
from .case import Build, Case, Inputs
from .peers.lvdm import UNet
from .peers.lvdm_autoencoder import Autoencoder

TEXT_TOKENS = 77

# A quarter of the parameters and of the work: half the width on the official latent.
UNET_A = {
    "tiny": LatentVideoUNetConfig(model_channels=32, num_res_blocks=1),
    "quarter": LatentVideoUNetConfig(model_channels=128),
    "official": LatentVideoUNetConfig(),
}
UNET_B = {
    "tiny": TextToVideoUNetConfig(model_channels=32, num_res_blocks=1, context_width=64),
    "quarter": TextToVideoUNetConfig(model_channels=160),
    "official": TextToVideoUNetConfig(),
}
AUTOENCODER = {
    "tiny": VideoAutoencoderConfig(n_hiddens=16, downsample=(2, 4, 4)),
    "quarter": VideoAutoencoderConfig(n_hiddens=16),
    "official": VideoAutoencoderConfig(),
}
# Latents: frames, height, width.
SHAPE_A = {"tiny": (4, 16, 16), "quarter": (4, 32, 32), "official": (4, 32, 32)}
SHAPE_B = {"tiny": (8, 16, 16), "quarter": (16, 32, 32), "official": (16, 32, 32)}


def _timesteps(batch: int) -> Tensor:
    return torch.linspace(1, 981, batch).round()


def _inputs_a(size: str, batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, UNET_A[size].in_channels, *SHAPE_A[size]), _timesteps(batch)


def _inputs_b(size: str, batch: int) -> tuple[Tensor, ...]:
    config = UNET_B[size]
    context = torch.randn(batch, TEXT_TOKENS, config.context_width)
    return torch.randn(batch, config.in_channels, *SHAPE_B[size]), _timesteps(batch), context


def _latents(size: str, batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, AUTOENCODER[size].embed_dim, *SHAPE_A[size]),)


def _pixels(size: str, batch: int) -> tuple[Tensor, ...]:
    config = AUTOENCODER[size]
    shape = (count * factor for count, factor in zip(SHAPE_A[size], config.downsample, strict=True))
    return (torch.rand(batch, config.image_channels, *shape) * 2 - 1,)


def _unet_peers(configs: Mapping[str, LatentVideoUNetConfig | TextToVideoUNetConfig]) -> dict[str, Build]:
    return {
        "plain": lambda size: UNet(configs[size]),
        "plain, softmax": lambda size: UNet(configs[size], fused=False),
    }


_UNET_NOTE = (
    "plain: torch.nn layers as the released model, but spatial attention by torch's fused kernel, which is kinder than "
    "the released explicit softmax (row `plain, softmax`)"
)
_AUTOENCODER_NOTE = "plain: torch.nn layers as the released model"


def _autoencoder(method: str, inputs: Inputs) -> Case:
    return Case(
        name=f"lvdm-ae-{method}",
        ours=lambda size: VideoAutoencoder(AUTOENCODER[size]),
        peers={"plain": lambda size: Autoencoder(AUTOENCODER[size])},
        keys=AUTOENCODER_KEYS,
        inputs=inputs,
        width=lambda size: AUTOENCODER[size].n_hiddens,
        method=method,
        note=_AUTOENCODER_NOTE,
    )


CASES = (
    Case(
        name="lvdm-unet-a",
        ours=lambda size: LatentVideoUNet(UNET_A[size]),
        peers=_unet_peers(UNET_A),
        keys=UNET_KEYS,
        inputs=_inputs_a,
        width=lambda size: UNET_A[size].model_channels,
        note=_UNET_NOTE,
    ),
    Case(
        name="lvdm-unet-b",
        ours=lambda size: TextToVideoUNet(UNET_B[size]),
        peers=_unet_peers(UNET_B),
        keys=UNET_KEYS,
        inputs=_inputs_b,
        width=lambda size: UNET_B[size].model_channels,
        note=_UNET_NOTE,
    ),
    _autoencoder("encode", _pixels),
    _autoencoder("decode", _latents),
)
