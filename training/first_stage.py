"""The frozen autoencoder of a latent diffusion model.

Shapes: B clips, T, H, W frames and latents, Z latent channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from ..model_loaders.checkpoint import read
from . import checkpoints
from .distributed import is_first
from .losses import to_frames
from .sections import ImageAutoencoderFile, VideoAutoencoderFile
from .settings import RecipeError, read_section

COPY_NAME = "autoencoder.safetensors"


class ImageAutoencoder(nn.Module):
    """Stable Diffusion's autoencoder, frame by frame; weights from a folder in diffusers' layout."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.network = AutoencoderKL.from_pretrained(path, local_files_only=True)
        self.latent_channels: int = self.network.config.latent_channels
        self.downsample = (1, *[2 ** (len(self.network.config.block_out_channels) - 1)] * 2)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, T, H, W) in -1..1 -> mean and log-variance (B, Z, T, H/8, W/8)."""
        posterior = self.network.encode(to_frames(x)).latent_dist
        mean, logvar = (part.unflatten(0, (len(x), -1)).transpose(1, 2) for part in (posterior.mean, posterior.logvar))
        return mean, logvar


FrozenAutoencoder = VideoAutoencoder | ImageAutoencoder


def latent_layout(network: FrozenAutoencoder) -> tuple[int, tuple[int, ...]]:
    """Channels of the latents, and the pixels under one in time, height and width."""
    if isinstance(network, ImageAutoencoder):
        return network.latent_channels, network.downsample
    return network.config.embed_dim, network.config.downsample


def load_autoencoder(settings: VideoAutoencoderFile | ImageAutoencoderFile, folder: Path) -> FrozenAutoencoder:
    """The frozen autoencoder; a copy of a 3D one is left in the run folder: the run needs nothing else afterwards."""
    copy, path = folder / COPY_NAME, Path(settings.path)
    network: FrozenAutoencoder
    if copy.exists() and checkpoints.exist(folder):
        network = read_autoencoder(copy)
    elif not path.exists():
        raise RecipeError(f"autoencoder.path: {path} does not exist; train the autoencoder or name its run folder")
    elif isinstance(settings, ImageAutoencoderFile):
        network = ImageAutoencoder(path)
    else:
        network = _open(path, settings.weights)
        metadata = {"config": json.dumps(asdict(network.config))}
        if is_first():
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, copy, metadata)
    return network.eval().requires_grad_(False)


def read_autoencoder(path: Path) -> VideoAutoencoder:
    """The autoencoder of a file that `load_autoencoder` left."""
    with safe_open(path, "pt") as file:
        config = read_section(VideoAutoencoderConfig, json.loads(file.metadata()["config"]), f"{path}: config.")
        state = {name: file.get_tensor(name) for name in file.keys()}
    network = VideoAutoencoder(config)
    network.load_state_dict(state)
    return network


def _open(path: Path, weights: str) -> VideoAutoencoder:
    if path.is_file() and path.suffix != ".pt":
        network = read(path).component("vae").build()
        if not isinstance(network, VideoAutoencoder):
            raise RecipeError(f"autoencoder.path: {path} holds a {type(network).__name__}, expected a VideoAutoencoder")
        return network
    state = checkpoints.read(checkpoints.newest(path) if path.is_dir() else path)
    if "vae" not in state["configs"]:
        raise RecipeError(f"autoencoder.path: {path} is a run of {state['recipe']['task']}, expected an autoencoder's")
    network = VideoAutoencoder(read_section(VideoAutoencoderConfig, state["configs"]["vae"], f"{path}: network."))
    network.load_state_dict(state["ema"]["networks"]["vae"] if weights == "ema" else state["networks"]["vae"])
    return network
