"""Released LVDM checkpoints: the 3D autoencoder, the short, prediction and interpolation models, and text-to-video.

Also files that ComfyUI saved from these models: our names, but no configuration.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..kernels.networks.lvdm import (
    LatentVideoUNet,
    LatentVideoUNetConfig,
    TextToVideoUNet,
    TextToVideoUNetConfig,
)
from ..kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from ..kernels.sampling.schedules import NoiseSchedule
from .checkpoint import MODEL, TEXT_ENCODER, VAE, Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .keymap import KeyMap, strip_prefix
from .unet_layout import PLACES, RESIDUAL, UNetLayout, count

log = logging.getLogger(__name__)

VIDEO_SCHEDULE = NoiseSchedule(0.0015, 0.0155)
TEXT_SCHEDULE = NoiseSchedule(0.00085, 0.012)
# Scale and shift that belong to the released autoencoders; they are not in the files.
SCALINGS = {
    "sky": (0.33422927, 1.4606637),
    "taichi": (0.175733933, 0.03291025),
    "ucf101": (0.220142075, 0.5837740898),
    "stable diffusion": (0.18215, 0.0),
    "none": (1.0, 0.0),
}

UNET_KEYS = KeyMap(
    rules=(
        *PLACES,
        *RESIDUAL,
        (r"^label_emb\.", "noise_level."),
        # Attention of the models on the 3D autoencoder.
        (r"\.norm_s\.", ".spatial_norm.norm."),
        (r"\.norm_t\.", ".temporal_norm.norm."),
        (r"\.qkv_s\.", ".spatial.qkv."),
        (r"\.qkv_t\.", ".temporal.qkv."),
        (r"\.proj_out_s\.", ".spatial.out."),
        (r"\.proj_out_t\.", ".temporal.out."),
        (r"\.attention\.relative_position", ".attention.temporal.relative_position"),
        # Transformers of the text-to-video model.
        (r"\.attention\.norm\.", ".attention.norm.norm."),
        (r"\.proj_(in|out)\.", r".project_\1."),
        (r"\.transformer_blocks\.", ".blocks."),
        (r"\.attn1\.", ".spatial."),
        (r"\.attn1_tmp\.", ".temporal1."),
        (r"\.attn2_tmp\.", ".temporal2."),
        (r"\.attn2\.to_q\.", ".text.query."),
        (r"\.attn2\.to_k\.weight", ".text.key_value.weight#0"),
        (r"\.attn2\.to_v\.weight", ".text.key_value.weight#1"),
        (r"\.attn2\.", ".text."),
        (r"\.to_q\.weight", ".qkv.weight#0"),
        (r"\.to_k\.weight", ".qkv.weight#1"),
        (r"\.to_v\.weight", ".qkv.weight#2"),
        (r"\.to_out\.0\.", ".out."),
        (r"\.ff\.net\.0\.proj\.", ".feed_forward.inner."),
        (r"\.ff\.net\.2\.", ".feed_forward.out."),
        (r"(\.blocks\.\d+)\.norm1\.", r"\1.spatial_norm."),
        (r"(\.blocks\.\d+)\.norm2\.", r"\1.text_norm."),
        (r"(\.blocks\.\d+)\.norm3\.", r"\1.feed_forward_norm."),
        (r"(\.blocks\.\d+)\.norm4\.", r"\1.temporal_norm1."),
        (r"(\.blocks\.\d+)\.norm5\.", r"\1.temporal_norm2."),
        (r"\.relative_position_k\.embeddings_table", ".key_positions.table.weight"),
        (r"\.relative_position_v\.embeddings_table", ".value_positions.table.weight"),
    ),
    # Convolutions over one frame, and convolutions that are linear layers.
    axes=(
        (r"\b(conv|conv1|conv2|conv_in|conv_out|skip)\.weight$", 4),
        (r"\b(qkv|out|project_in|project_out)\.weight$", 2),
    ),
)

AUTOENCODER_KEYS = KeyMap(
    rules=(
        (r"^encoder\.conv_first\.", "encoder.conv_in."),
        (r"^encoder\.final_block\.0\.", "encoder.norm_out."),
        (r"^encoder\.final_block\.2\.", "encoder.conv_out."),
        (r"\.conv_blocks\.", ".stages."),
        (r"\.convt\.", ".conv."),
        (r"\.res(\d?)\.", r".residual\1."),
        (r"quant_conv\.conv\.", "quant_conv."),
    )
)


def autoencoder_component(tensors: Mapping[str, Tensor]) -> Component:
    """The 3D autoencoder from released or own names (training losses and doubled weights are left out)."""
    if "encoder.conv_first.conv.weight" in tensors:
        kept = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith("loss.") and not _is_double(name, tensors)
        }
        tensors = AUTOENCODER_KEYS(kept)
    return Component(VideoAutoencoder, autoencoder_config(tensors), dict(tensors))


def autoencoder_config(tensors: Mapping[str, Tensor]) -> VideoAutoencoderConfig:
    """Configuration from shapes; time is halved once less than height and width, as in every released model.

    Shapes do not tell which axes a stage halves.
    """
    stages = count(tensors, r"^encoder\.stages\.(\d+)\.")
    stem, latent = tensors["encoder.conv_in.conv.weight"], tensors["post_quant_conv.weight"]
    return VideoAutoencoderConfig(
        n_hiddens=stem.shape[0],
        downsample=(2 ** (stages - 1), 2**stages, 2**stages),
        z_channels=latent.shape[0],
        embed_dim=latent.shape[1],
        image_channels=stem.shape[1],
    )


def unet_component(tensors: Mapping[str, Tensor]) -> Component:
    """Either denoising network from released or own names."""
    if "input_blocks.0.0.weight" in tensors:
        tensors = UNET_KEYS(tensors)
    layout = UNetLayout.of(tensors)
    shared: dict[str, Any] = {
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "model_channels": layout.model_channels,
        "channel_mult": layout.channel_mult,
        "num_res_blocks": layout.num_res_blocks,
        "attention_factors": layout.attention_factors,
        **_positions(tensors, layout.middle_channels),
    }
    text = [tensor for name, tensor in tensors.items() if name.endswith(".text.key_value.weight")]
    if text:
        depth = count(tensors, r"^skeleton\.middle\.0\.attention\.blocks\.(\d+)\.")
        config = TextToVideoUNetConfig(**shared, context_width=text[0].shape[1], depth=depth)
        return Component(TextToVideoUNet, config, dict(tensors))
    levels = tensors.get("noise_level.weight")
    video = LatentVideoUNetConfig(
        **shared, scale_shift=layout.scale_shift, noise_levels=0 if levels is None else levels.shape[0]
    )
    return Component(LatentVideoUNet, video, dict(tensors))


def _positions(tensors: Mapping[str, Tensor], channels: int) -> dict[str, Any]:
    """What a position table of the middle block, (2 * length + 1, width of a head), says of temporal attention."""
    pattern = r"skeleton\.middle\.0\.attention\..*key_positions\.table\.weight"
    table = next((tensor for name, tensor in tensors.items() if re.match(pattern, name)), None)
    if table is None:
        log.warning("No table of positions tells the number of attention heads: that of the released model is taken")
        return {"relative_positions": False}
    return {
        "relative_positions": True,
        "temporal_length": (table.shape[0] - 1) // 2,
        "num_heads": channels // table.shape[1],
    }


def averaged(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The averaged copy of the UNet, by the names of the training copy (the copy's own names have lost their dots).

    Raises:
        CheckpointError: the file has no complete copy.
    """
    training = strip_prefix(tensors, "model.diffusion_model.")
    copies = {key: f"model_ema.diffusion_model{key.replace('.', '')}" for key in training}
    missing = [copy for copy in copies.values() if copy not in tensors]
    if missing or not copies:
        absent = missing[0] if missing else "model_ema.*"
        raise CheckpointError(
            f"{name} has no averaged (EMA) weights ({absent} is missing): choose the training weights instead."
        )
    return {key: tensors[copy] for key, copy in copies.items()}


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return bool(_unet_tensors(tensors)) or _is_video_autoencoder(_first_stage(tensors))


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    components: dict[str, Component] = {}
    unet = _unet_tensors(tensors)
    if unet and options.ema:
        unet = averaged(tensors, name)
    if unet:
        components[MODEL] = unet_component(unet)
    first_stage = _first_stage(tensors)
    if _is_video_autoencoder(first_stage):
        components[VAE] = autoencoder_component(first_stage)
    elif "encoder.conv_in.weight" in first_stage:
        components[VAE] = Component(None, "stable diffusion", first_stage)
    text = strip_prefix(tensors, "cond_stage_model.transformer.")
    if text:
        components[TEXT_ENCODER] = Component(None, "clip l", text)
    return _with_latents(name, components, options)


def _unet_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a denoiser with LVDM's temporal attention, by released or own names, below any prefix; or none."""
    released = re.compile(r"^middle_block\.1\.(norm_t|transformer_blocks\.0\.attn1_tmp)\b")
    own = re.compile(r"^skeleton\.middle\.0\.attention\.(temporal\.qkv|blocks\.0\.temporal1)\.")
    for prefix in ("model.diffusion_model.", "diffusion_model.", ""):
        unet = strip_prefix(tensors, prefix)
        if any(released.match(name) or own.match(name) for name in unet):
            return unet
    return {}


def _first_stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return strip_prefix(tensors, "first_stage_model.") or dict(tensors)


def _is_video_autoencoder(tensors: Mapping[str, Tensor]) -> bool:
    return "encoder.conv_first.conv.weight" in tensors or "encoder.conv_in.conv.weight" in tensors


def _with_latents(name: str, components: dict[str, Component], options: ReadOptions) -> Checkpoint:
    denoiser = components[MODEL].config if MODEL in components else None
    autoencoder = components[VAE].config if VAE in components else None
    if isinstance(denoiser, TextToVideoUNetConfig):
        latent = LatentSpec(denoiser.out_channels, 8, 1, *_scaling(name, options, "stable diffusion"))
        return Checkpoint(name, "lvdm", components, latent, TEXT_SCHEDULE)
    if not isinstance(autoencoder, VideoAutoencoderConfig):
        autoencoder = VideoAutoencoderConfig()
    channels = denoiser.out_channels if isinstance(denoiser, LatentVideoUNetConfig) else autoencoder.embed_dim
    temporal, spatial, _ = autoencoder.downsample
    latent = LatentSpec(channels, spatial, temporal, *_scaling(name, options))
    return Checkpoint(name, "lvdm", components, latent, VIDEO_SCHEDULE)


def _scaling(name: str, options: ReadOptions, default: str | None = None) -> tuple[float, float]:
    """Scale and shift by the user's choice, else the default, else by the data set in the file's name."""
    chosen = options.scaling if options.scaling != "auto" else default or _guessed_scaling(name)
    if chosen not in SCALINGS:
        raise CheckpointError(f"{name}: unknown latent scaling {chosen!r}, expected one of {', '.join(SCALINGS)}.")
    return SCALINGS[chosen]


def _guessed_scaling(name: str) -> str:
    """The data set in the file's name: the released files are called after it."""
    for data_set in ("sky", "taichi", "ucf"):
        if data_set in name.lower():
            found = "ucf101" if data_set == "ucf" else data_set
            log.info("%s: latent scaling of %s, after the file's name", name, found)
            return found
    raise CheckpointError(
        f"{name}: the scale of its latents is not in the file. Choose the data set it was trained on as latent "
        f"scaling: {', '.join(SCALINGS)}."
    )


def _is_double(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Released convolutions store their weight twice, as `x.weight` and `x.conv.weight`."""
    return name.endswith(".weight") and name.removesuffix("weight") + "conv.weight" in tensors


FAMILY = Family("lvdm", _recognise, _read, tuple(SCALINGS))
