"""Videos from captions without ComfyUI: DDIM with guidance, enough to measure a run while it trains.

Shapes: B videos, Z latent channels, T, H, W frames and latents.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..kernels.networks.caption_encoder import CaptionEncoder, tokenize
from ..kernels.networks.harivo import MotionNetwork
from ..kernels.networks.video_autoencoder import VideoAutoencoder
from ..kernels.sampling.mitigating_gradient import mitigated
from ..kernels.sampling.schedules import ddim_sigmas, ddim_step, ddim_timesteps, denoised_of
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from ..model_loaders.harivo import MOTION
from .config import DiffusionRecipe, HarivoRecipe, ImageRecipe, Recipe, TextToVideoRecipe, VersVideoRecipe
from .data.clips import open_clips
from .data.moving_shapes import held_out_captions
from .data.video_files import write_video
from .export import Trained
from .image_model import open_image_model
from .moving_unet import MovingModel
from .sections import MovingShapesData, frame_size
from .settings import InputError

BATCH = 16
FPS = 8
"""Of what is written by models whose clips have no frame rate."""


class Sampler:
    """The networks of a finished run, ready to make videos, of one frame by image models.

    With `alpha`, frames are drawn towards each other at every step (mitigating gradient, HARIVO), per element: as
    strongly at any latent size as at the paper's.
    """

    def __init__(self, source: Path, device: torch.device, alpha: float = 0.0) -> None:
        trained = Trained(source)
        if not isinstance(trained.recipe, TextToVideoRecipe | VersVideoRecipe | ImageRecipe | HarivoRecipe):
            raise InputError(
                f"{source}: a run of {trained.recipe.task}, expected text_to_video, versvideo, image, harivo or show1"
            )
        if isinstance(trained.recipe, HarivoRecipe):
            _add_image_model(trained.networks, Path(trained.recipe.image_model.path))
        if "vae" not in trained.networks or "text_encoder" not in trained.networks:
            raise InputError(f"{source}: its autoencoder or text encoder is not its own; sample with ComfyUI")
        self.recipe: DiffusionRecipe = trained.recipe
        self.device, self.alpha = device, alpha
        self.scale, self.shift = trained.facts["scale"], trained.facts["shift"]
        networks = {role: network.to(device) for role, network in trained.networks.items()}
        self.unet = networks["diffusion_model"]
        self.text_encoder, self.autoencoder = networks["text_encoder"], networks["vae"]
        self.frames = 1 if isinstance(trained.recipe, ImageRecipe) else trained.recipe.data.frames
        self.schedule = trained.recipe.schedule.noise_schedule()

    @torch.no_grad()
    def __call__(self, captions: list[str], steps: int, guidance: float, seed: int, first: int = 0) -> Tensor:
        """Captions (B) -> uint8 frames (B, T, H, W, 3); deterministic DDIM, noise drawn from the seed alone."""
        assert isinstance(self.autoencoder, VideoAutoencoder)
        config, data = self.autoencoder.config, self.recipe.data
        pixels = (self.frames, *frame_size(data))
        sizes = [size // factor for size, factor in zip(pixels, config.downsample, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(captions), config.embed_dim, *sizes), generator=generator).to(self.device)
        encode = partial(encode_captions, self.text_encoder)
        context = torch.cat([encode(captions), encode([""] * len(captions))])
        sigmas = ddim_sigmas(self.schedule, steps)
        x = noise * (1 + sigmas[0] ** 2).sqrt().float()
        for index, time in enumerate(ddim_timesteps(steps).tolist()):
            sigma = sigmas[index].float()
            times = torch.full((2 * len(x),), time, device=self.device)
            scaled = (x / (1 + sigma**2).sqrt()).repeat(2, 1, 1, 1, 1)
            with_text, without = self.unet(scaled, times, context).chunk(2)
            guided = without + guidance * (with_text - without)
            denoised = denoised_of(self.schedule, x, sigma, guided)
            denoised = mitigated(denoised.transpose(1, 2), self.alpha, sigma, per_element=True).transpose(1, 2)
            x = ddim_step(x, denoised, sigmas[index], sigmas[index + 1], 0.0, torch.zeros_like(x))
        # Back from the scale of the sampler to that of the latents: the last level is abar[0], not zero.
        z = x / (1 + sigmas[-1] ** 2).sqrt().float()
        video = self.autoencoder.decode(z / self.scale - self.shift)
        return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()


def encode_captions(encoder: nn.Module, captions: list[str]) -> Tensor:
    """Captions (B) -> what a caption encoder makes of them, (B, N, D)."""
    assert isinstance(encoder, CaptionEncoder)
    config = encoder.config
    tokens = [tokenize(text, config.vocabulary, config.max_tokens) for text in captions]
    encoded: Tensor = encoder(torch.tensor(tokens, device=next(encoder.parameters()).device))
    return encoded


def _add_image_model(networks: dict[str, nn.Module], path: Path) -> None:
    """A moving denoiser and its text encoder, for motion that was trained around an image model."""
    image, motion = open_image_model(path), networks.pop(MOTION)
    assert isinstance(motion, MotionNetwork)
    networks[MODEL] = MovingModel(image.unet, motion)
    if image.text_encoder is not None:
        networks[TEXT_ENCODER] = image.text_encoder


def sample_captions(recipe: Recipe) -> list[str]:
    """Captions that a run's samples show: held-out ones; raises InputError when there are not as many."""
    wanted = recipe.run.samples
    if isinstance(recipe.data, MovingShapesData):
        return held_out_captions(wanted, recipe.data.seed)
    held_out = open_clips(recipe.data, "held_out")
    if len(held_out) < wanted:
        raise InputError(f"run.samples: found {wanted}, expected at most data.held_out = {len(held_out)}")
    return held_out.texts(wanted)


class MakesVideos(Protocol):
    """What videos are made with."""

    @property
    def recipe(self) -> DiffusionRecipe:
        """Of the network that makes the last frames."""
        ...

    def __call__(self, captions: list[str], steps: int, guidance: float, seed: int, first: int = 0) -> Tensor:
        """Captions (B), the first of which is so many-th -> uint8 frames (B, T, H, W, 3)."""
        ...


def write_samples(
    sampler: MakesVideos, captions: list[str], folder: Path, steps: int, guidance: float, seed: int
) -> None:
    """Write a video per caption and captions.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    data = sampler.recipe.data
    fps = data.fps or FPS
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for start in tqdm(range(0, len(captions), BATCH), desc="sampling", dynamic_ncols=True):
            part = captions[start : start + BATCH]
            for offset, video in enumerate(sampler(part, steps, guidance, seed + start, start)):
                name = f"{start + offset:05d}.mp4"
                write_video(folder / name, video.numpy(), fps)
                lines.write(json.dumps({"file": name, "caption": part[offset]}) + "\n")
