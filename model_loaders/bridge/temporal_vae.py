"""VersVideo's TCM-VAE around any VAE of Stable Diffusion's kind: a VAE whose decoded frames know of each other.

The image VAE keeps its weights, and encodes as before. Long clips are decoded part by part; each part sees what it
needs of its neighbours, so that nothing depends on where the cuts are.

Shapes: B videos, Z latent channels, T frames, h, w latent size, H, W pixels.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.networks.temporal_vae import REACH, TemporalDecoder, TemporalVAEConfig
from ...kernels.networks.temporal_vae import TemporalVAE as TemporalNetwork
from ...kernels.networks.video_autoencoder import VideoAutoencoder
from ..checkpoint import read
from ..temporal_vae import TEMPORAL_VAE
from .compat import model as autoencoder_model
from .compat import model_management, model_patcher, ops, sd, utils
from .operations import network_operations
from .vae import FramewiseVAE, PictureAutoencoder

log = logging.getLogger(__name__)
_PATCH = "weft_temporal_vae"


class TemporalVAE(sd.VAE):
    """An image VAE with a temporal decoder: 5D latents, or 4D ones with the frames in the batch."""

    def __init__(self, vae: sd.VAE, temporal: object, clip: int, frames_at_once: int) -> None:
        """Wrap a VAE.

        Args:
            vae: of images, or one that takes videos frame by frame.
            temporal: patcher of the `TemporalNetwork`.
            clip: frames of a video in 4D latents; 0: the whole batch is one.
            frames_at_once: length of the parts that are decoded.

        Raises:
            ValueError: it is no VAE that the network goes on.
        """
        image = vae.image_vae if isinstance(vae, FramewiseVAE) else vae
        network: TemporalNetwork = temporal.model  # type: ignore[attr-defined]
        places = decoder_places(image, network.config)
        self.__dict__.update(image.__dict__)
        self.given_vae, self.clip, self.frames_at_once = vae, clip, frames_at_once
        self.first_stage_model = _Decoder(image.first_stage_model, network, places, frames_at_once)
        # ComfyUI loads what patches name together with the model that they are on.
        self.patcher = image.patcher.clone()
        self.patcher.set_model_patch(_Beside(temporal), _PATCH)
        up = image.spacial_compression_decode()
        self.latent_dim, self.handles_tiling = 3, False
        self.upscale_ratio, self.upscale_index_formula = (lambda count: count, up, up), (1, up, up)
        width = max(network.config.widths[0], network.config.refinement_channels)

        def memory_used_decode(shape: Sequence[int], dtype: torch.dtype) -> float:
            # Live values for every pixel of a frame: 776 were counted in a forward pass with 128 channels.
            frames = min(shape[2], self.first_stage_model.frames_at_once + 2 * REACH)
            return frames * math.prod(shape[3:]) * up**2 * 10 * width * model_management.dtype_size(dtype)

        self.memory_used_decode = memory_used_decode

    def decode(self, samples_in: Tensor, vae_options: dict[str, object] | None = None) -> Tensor:
        """Latents (B, Z, T, h, w) -> (B, T, H, W, 3) in 0..1; of frames in the batch (T, Z, h, w) -> (T, H, W, 3).

        Raises:
            ValueError: latents of another VAE, or of no whole number of videos.
        """
        self.first_stage_model.frames_at_once = self.frames_at_once
        images = super().decode(self._videos(samples_in), vae_options or {})
        return images.flatten(0, 1) if samples_in.ndim == 4 else images

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """`decode` in tiles of space; `tile_t` frames at a time, which changes nothing in the result."""
        self.first_stage_model.frames_at_once = min(self.frames_at_once, tile_t or self.frames_at_once)
        videos = self._videos(samples)
        sizes = {"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap}
        given = {name: size for name, size in sizes.items() if size is not None}
        images = super().decode_tiled(videos, **{"overlap": 8, **given}, tile_t=videos.shape[2])
        return images.flatten(0, 1) if samples.ndim == 4 else images

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """What the given VAE makes of it."""
        return self.given_vae.encode(pixel_samples)

    def encode_tiled(self, pixel_samples: Tensor, *args: object, **kwargs: object) -> Tensor:
        """What the given VAE makes of it."""
        return self.given_vae.encode_tiled(pixel_samples, *args, **kwargs)

    def get_sd(self) -> dict[str, Tensor]:
        """What the stock save nodes write: the given VAE."""
        return self.given_vae.get_sd()

    def _videos(self, latents: Tensor) -> Tensor:
        """(B, Z, T, h, w), whichever way frames are given."""
        if latents.ndim not in (4, 5) or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"This VAE decodes latents with {self.latent_channels} channels, of videos (batch, channels, frames, "
                f"height, width) or of frames (frames, channels, height, width), found {tuple(latents.shape)}: use the "
                "VAE that belongs to the model."
            )
        if latents.ndim == 5:
            return latents
        clip = self.clip or len(latents)
        if len(latents) % clip:
            raise ValueError(
                f"The batch has {len(latents)} latents, which is no multiple of {clip} frames: set Temporal VAE's "
                "frames to those of a video, or to 0 where the whole batch is one."
            )
        return latents.unflatten(0, (-1, clip)).transpose(1, 2)


class _Decoder:
    """In the place of the image VAE's network: `decode` takes videos."""

    def __init__(
        self, image: nn.Module, network: TemporalNetwork, places: Sequence[nn.Module], frames_at_once: int
    ) -> None:
        self.frames_at_once = frames_at_once
        decode = image.decode_frames if isinstance(image, VideoAutoencoder) else image.decode
        self._decoder = TemporalDecoder(network, decode, places)  # type: ignore[arg-type]

    def decode(self, latents: Tensor, **options: object) -> Tensor:
        """(B, Z, T, h, w) -> (B, 3, T, H, W) in -1..1, part by part."""
        count, parts = latents.shape[2], []
        for start in range(0, count, self.frames_at_once):
            model_management.throw_exception_if_processing_interrupted()
            parts.append(self._decoder(latents, range(start, min(start + self.frames_at_once, count))))
        return torch.cat(parts, dim=2)


class _Beside:
    """A patch that names the network's patcher, and does nothing."""

    def __init__(self, patcher: object) -> None:
        self._patcher = patcher

    def models(self) -> list[object]:
        """What has to be on the device."""
        return [self._patcher]


def decoder_places(vae: sd.VAE, config: TemporalVAEConfig) -> list[nn.Module]:
    """The layers of an image VAE's decoder behind which the compensation modules stand, deepest first.

    Raises:
        ValueError: the VAE is of another layout, or of other sizes.
    """
    model = vae.first_stage_model
    decoder, places, widths = getattr(model, "decoder", None), [], []
    if isinstance(model, VideoAutoencoder) and (model.config.framewise or isinstance(model, PictureAutoencoder)):
        places = list(model.decoder.stages)
        widths = [stage.residual1.conv1.conv.out_channels for stage in places]  # type: ignore[union-attr]
    elif isinstance(decoder, autoencoder_model.Decoder) and vae.latent_dim == 2:
        levels = list(decoder.up)[::-1]
        places = [level.attn[-1] if len(level.attn) else level.block[-1] for level in levels]
        widths = [level.block[-1].out_channels for level in levels]
    expected = list(config.widths)[::-1]
    if widths != expected or vae.latent_channels != config.latent_channels:
        kind = type(model).__name__
        found = f"widths {widths}" if widths else "another layout"
        raise ValueError(
            f"The temporal decoder goes on an image VAE of Stable Diffusion's kind, with {config.latent_channels} "
            f"latent channels and a decoder of widths {expected}; found {kind} with {vae.latent_channels} latent "
            f"channels and {found}. Connect the VAE of the model that the file was trained for."
        )
    return places


def temporal_vae(vae: sd.VAE, path: str, clip: int, frames_at_once: int) -> TemporalVAE:
    """The VAE with a file's temporal decoder.

    Raises:
        CheckpointError: the file holds none, or does not fit.
        ValueError: it does not go on this VAE.
    """
    if isinstance(vae, TemporalVAE):
        raise ValueError("This VAE has a temporal decoder already: connect the image VAE.")
    checkpoint = read(path)
    component = checkpoint.component(TEMPORAL_VAE)
    decoder_places(vae.image_vae if isinstance(vae, FramewiseVAE) else vae, component.config)  # type: ignore[arg-type]
    # Casting operations: ComfyUI may leave weights where they are.
    network = component.network(  # type: ignore[misc]
        component.config, dtype=vae.vae_dtype, operations=network_operations(ops.manual_cast)
    )
    network.load_state_dict(dict(component.tensors))
    network.eval().requires_grad_(False)
    patcher = model_patcher.ModelPatcher(
        network, load_device=vae.device, offload_device=model_management.vae_offload_device()
    )
    log.info(
        "Loaded %s: temporal decoder, %d parameters", checkpoint.name, utils.calculate_parameters(component.tensors)
    )
    return TemporalVAE(vae, patcher, clip, frames_at_once)
