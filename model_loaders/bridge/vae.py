"""Native VAE objects: 3D autoencoders, those of single frames, and any image VAE as a VAE of videos."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.networks.video_autoencoder import VideoAutoencoder
from ..bundle import DESCRIPTION, describe, description_tensor
from ..checkpoint import VAE, Checkpoint
from ..errors import CheckpointError
from ..keymap import check_tensors
from .compat import diffusers_convert, model_management, model_patcher, ops, sd
from .operations import network_operations

log = logging.getLogger(__name__)


class OwnVAE(sd.VAE):
    """VAE of one of our autoencoders; the classes below add the axes of its latents."""

    def __init__(
        self, network: VideoAutoencoder, tensors: dict[str, Tensor], description: Mapping[str, object]
    ) -> None:
        """Does what the base class does after it has recognised a file; the base constructor is not called."""
        config = network.config
        self.description = description
        self.latent_channels, self.output_channels = config.embed_dim, config.image_channels
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        self.working_dtypes = [torch.bfloat16, torch.float32]
        # Small, and its transposed convolutions want their weights in place.
        self.disable_offload = True
        self.crop_input, self.handles_tiling, self.not_video = True, False, False
        self.pad_channel_value = self.size = self.extra_1d_channel = self.format_encoded = None
        self.audio_sample_rate = 44100
        self._set_memory_estimates(config.n_hiddens, math.prod(config.downsample))
        self._install(network, tensors)

    def _set_memory_estimates(self, width: int, pixels_per_latent: int) -> None:
        # Live tensors at full size, counted in the forward pass: input, norm and output of the last residual block.
        self.memory_used_decode = lambda shape, dtype: (
            _positions(shape) * pixels_per_latent * 8 * width * model_management.dtype_size(dtype)
        )
        self.memory_used_encode = lambda shape, dtype: (
            _positions(shape) * 4 * width * model_management.dtype_size(dtype)
        )

    def _install(self, network: VideoAutoencoder, tensors: dict[str, Tensor]) -> None:
        self.device = model_management.vae_device()
        self.vae_dtype = model_management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = model_management.intermediate_device()
        self.first_stage_model = network.eval().to(self.vae_dtype)
        model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=model_management.vae_offload_device()
        )
        self.first_stage_model.load_state_dict(tensors)
        self.model_size()

    def get_sd(self) -> dict[str, Tensor]:
        """What the stock save nodes write: the weights, and the description that the loaders need."""
        return {**super().get_sd(), DESCRIPTION: description_tensor(self.description)}


class VideoVAE(OwnVAE):
    """VAE of a 3D autoencoder that is not causal: f frames per latent along time."""

    def __init__(
        self, network: VideoAutoencoder, tensors: dict[str, Tensor], description: Mapping[str, object]
    ) -> None:
        super().__init__(network, tensors, description)
        frames, height, width = network.config.downsample
        self.latent_dim = 3
        self.upscale_ratio = (lambda count: count * frames, height, width)
        self.upscale_index_formula = (frames, height, width)
        self.downscale_ratio = (lambda count: count // frames, height, width)
        self.downscale_index_formula = (frames, height, width)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Frames (T, H, W, 3) or clips (B, T, H, W, 3) in 0..1 -> latents (B, C, T/f, H/f, W/f).

        Raises:
            ValueError: too few frames or pixels for one latent.
        """
        return torch.cat([super(VideoVAE, self).encode(clip) for clip in self._whole_latents(pixel_samples)])

    def encode_tiled(self, pixel_samples: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`encode` in tiles of space and time; the arguments are the base class's."""
        clips = self._whole_latents(pixel_samples)
        return torch.cat([super(VideoVAE, self).encode_tiled(clip, *args, **kwargs) for clip in clips])

    def decode(self, samples_in: Tensor, vae_options: dict[str, object] | None = None) -> Tensor:
        """Latents (B, C, T, H, W) -> frames (B, T*f, H*f, W*f, 3) in 0..1.

        Raises:
            ValueError: latents of images, or of another VAE.
        """
        return super().decode(self._own_latents(samples_in), vae_options or {})

    def decode_tiled(self, samples: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`decode` in tiles of space and time; the arguments are the base class's."""
        return super().decode_tiled(self._own_latents(samples), *args, **kwargs)

    def _own_latents(self, latents: Tensor) -> Tensor:
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"This VAE decodes latents of videos (batch, {self.latent_channels}, frames, height, width), found "
                f"{tuple(latents.shape)}: use the VAE that belongs to the model."
            )
        return latents

    def _whole_latents(self, pixels: Tensor) -> Tensor:
        """Clips (B, T, H, W, 3), T cut to whole latents."""
        clips = pixels if pixels.ndim == 5 else pixels[None]
        factor, height, width = self.upscale_index_formula
        count = clips.shape[1]
        if count < factor or clips.shape[2] < height or clips.shape[3] < width:
            raise ValueError(
                f"This VAE puts {factor} frames of {width} x {height} pixels into one latent, found {count} frames of "
                f"{clips.shape[3]} x {clips.shape[2]}: give it a clip of at least {factor} frames and that size."
            )
        kept = count - count % factor
        if kept < count:
            log.warning("%d frames were cut to %d: this VAE takes multiples of %d", count, kept, factor)
        return clips[:, :kept]


class PictureAutoencoder(VideoAutoencoder):
    """An autoencoder with one latent per frame, on pictures."""

    def encode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in -1..1 -> mean latents (B, C, h, w)."""
        return super().encode(x[:, :, None])[:, :, 0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W)."""
        return super().decode(z[:, :, None])[:, :, 0]


class PictureVAE(OwnVAE):
    """VAE of such an autoencoder."""

    def __init__(
        self, network: VideoAutoencoder, tensors: dict[str, Tensor], description: Mapping[str, object]
    ) -> None:
        super().__init__(network, tensors, description)
        self.latent_dim = 2
        self.upscale_ratio = self.downscale_ratio = network.config.downsample[1]
        self.upscale_index_formula = self.downscale_index_formula = None

    def decode(self, samples_in: Tensor, vae_options: dict[str, object] | None = None) -> Tensor:
        """Latents (B, C, H, W) -> pictures (B, H*f, W*f, 3) in 0..1.

        Raises:
            ValueError: latents of videos, or of another VAE.
        """
        return super().decode(self._own_latents(samples_in), vae_options or {})

    def decode_tiled(self, samples: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`decode` in tiles; the arguments are the base class's."""
        return super().decode_tiled(self._own_latents(samples), *args, **kwargs)

    def _own_latents(self, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"This VAE decodes latents of pictures (batch, {self.latent_channels}, height, width), found "
                f"{tuple(latents.shape)}: use the VAE that belongs to the model."
            )
        return latents


class FramewiseVAE(sd.VAE):
    """An image VAE that treats every frame of a 5D latent by itself; weights and patcher are shared."""

    def __init__(self, vae: sd.VAE) -> None:
        """Wrap a VAE.

        Raises:
            ValueError: it is a video VAE already, or none for images.
        """
        if vae.latent_dim != 2:
            raise ValueError(
                f"This VAE has {vae.latent_dim}D latents, expected an image VAE (2D): video VAEs take 5D latents as "
                "they are, connect it directly."
            )
        self.__dict__.update(vae.__dict__)
        self.image_vae = vae
        up, down = vae.spacial_compression_decode(), vae.spacial_compression_encode()
        self.latent_dim = 3
        self.upscale_ratio, self.upscale_index_formula = (_same, up, up), (1, up, up)
        self.downscale_ratio, self.downscale_index_formula = (_same, down, down), (1, down, down)

    def decode(self, samples_in: Tensor, vae_options: dict[str, object] | None = None) -> Tensor:
        """Latents (B, C, T, H, W) -> frames (B, T, H', W', 3) in 0..1."""
        frames, videos = _frames_of(samples_in)
        return self.image_vae.decode(frames, vae_options or {}).unflatten(0, (videos, -1))

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """`decode` in spatial tiles; frames are independent, so tiles in time are not needed."""
        frames, videos = _frames_of(samples)
        sizes = {"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap}
        return self.image_vae.decode_tiled(frames, **_given(sizes)).unflatten(0, (videos, -1))

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Frames (T, H, W, 3) or clips (B, T, H, W, 3) in 0..1 -> latents (B, C, T, H', W')."""
        frames, videos = _clips_of(pixel_samples)
        return self.image_vae.encode(frames).unflatten(0, (videos, -1)).movedim(2, 1)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """`encode` in spatial tiles."""
        frames, videos = _clips_of(pixel_samples)
        sizes = {"tile_x": tile_x, "tile_y": tile_y, "overlap": overlap}
        return self.image_vae.encode_tiled(frames, **_given(sizes)).unflatten(0, (videos, -1)).movedim(2, 1)


def make_vae(checkpoint: Checkpoint) -> sd.VAE:
    """VAE of a checkpoint: its 3D autoencoder, its image VAE frame by frame, or for pixels a change of range.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    if VAE not in checkpoint.components and checkpoint.latent.pixels:
        return FramewiseVAE(_stock_vae({"pixel_space_vae": torch.tensor(1.0)}, checkpoint.name))
    component = checkpoint.component(VAE)
    if component.network is None:
        return FramewiseVAE(_stock_vae(component.tensors, checkpoint.name))
    if component.network is not VideoAutoencoder:
        raise CheckpointError(f"{checkpoint.name}: no VAE is made of a {component.network.__name__}.")
    pictures = checkpoint.latent.dimensions == 2
    if pictures and component.config.downsample[0] != 1:  # type: ignore[attr-defined]
        raise CheckpointError(
            f"{checkpoint.name}: its autoencoder has one latent for several frames, pictures need one for each. The "
            "file was put together wrongly."
        )
    kind, vae = (PictureAutoencoder, PictureVAE) if pictures else (VideoAutoencoder, VideoVAE)
    network = kind(component.config, operations=network_operations(ops.disable_weight_init))  # type: ignore[arg-type]
    return vae(network, dict(component.tensors), describe(checkpoint, [VAE]))


def _stock_vae(tensors: Mapping[str, Tensor], name: str) -> sd.VAE:
    """ComfyUI's VAE, which takes incomplete files by itself."""
    try:
        if "decoder.up_blocks.0.resnets.0.norm1.weight" in tensors:
            tensors = diffusers_convert.convert_vae_state_dict(dict(tensors))
        vae = sd.VAE(sd=dict(tensors))
        vae.throw_exception_if_invalid()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name}: ComfyUI cannot make a VAE of its first_stage_model, expected encoder.* and decoder.* of Stable "
            f"Diffusion's, found {len(tensors)} tensors such as {next(iter(tensors))} ({reason})."
        ) from error
    check_tensors(vae.first_stage_model, tensors, f"The VAE in {name}")
    return vae


def _positions(shape: tuple[int, ...]) -> int:
    return math.prod(shape[2:])


def _same(count: int) -> int:
    return count


def _given(options: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}


def _frames_of(latents: Tensor) -> tuple[Tensor, int]:
    if latents.ndim == 4:
        return latents, latents.shape[0]
    return latents.movedim(2, 1).flatten(0, 1), latents.shape[0]


def _clips_of(pixels: Tensor) -> tuple[Tensor, int]:
    return (pixels.flatten(0, 1), pixels.shape[0]) if pixels.ndim == 5 else (pixels, 1)
