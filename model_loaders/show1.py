"""Show-1 checkpoints in diffusers' layout: the stages on pixels, and DeepFloyd IF's super-resolution of pictures.

The second super-resolution, on latents, is read with the models whose layout it has, in `higen`.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..kernels.networks.show1 import ACTIVATION, NOISE_LEVELS, PixelStage, PixelUNet, PixelUNetConfig
from ..kernels.sampling.schedules import NoiseSchedule
from .checkpoint import MODEL, TEXT_ENCODER, Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .files import SCHEDULER, UNET
from .higen import TRANSFORMERS
from .keymap import KeyMap, Rule, strip_prefix
from .scheduler import read_schedule, read_settings
from .unet_layout import UNetLayout, count

# Pixels in -1..1 are their own latents.
LATENT = LatentSpec(3, 1, 1, rgb_factors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
SCHEDULE = NoiseSchedule(spacing="cosine", eta=0.0)
SCHEDULES: dict[PixelStage, NoiseSchedule] = {
    "base": SCHEDULE,
    "interpolation": SCHEDULE,
    "sr1": NoiseSchedule(spacing="cosine", prediction="velocity", eta=0.0),
    # DeepFloyd's own, which adds noise at every step.
    "first frame": NoiseSchedule(spacing="cosine", eta=1.0),
}
UPSCALER_DIVISOR = 1.4142271248762552
"""Of residual sums in both networks of super-resolution, as their configurations have it."""

_PARTS = {
    "resnets": "residual.spatial",
    "temp_convs": "residual.temporal",
    "attentions": "attention.joint",
    "temp_attentions": "attention.temporal",
}
_MEMBER = rf"({'|'.join(_PARTS)})\.(\d+)\."

_EMBEDDINGS: tuple[Rule, ...] = (
    (r"^time_embedding\.linear_1\.", "time_embedding.hidden."),
    (r"^time_embedding\.linear_2\.", "time_embedding.out."),
    (r"^class_embedding\.linear_1\.", "noise_embedding.hidden."),
    (r"^class_embedding\.linear_2\.", "noise_embedding.out."),
    (r"^encoder_hid_proj\.", "text_in."),
    (r"^add_embedding\.norm1\.", "text_pooling.norm_in."),
    (r"^add_embedding\.pool\.positional_embedding$", "text_pooling.place.weight"),
    (r"^add_embedding\.pool\.q_proj\.", "text_pooling.query."),
    (r"^add_embedding\.pool\.k_proj\.(weight|bias)", r"text_pooling.key_value.\1#0"),
    (r"^add_embedding\.pool\.v_proj\.(weight|bias)", r"text_pooling.key_value.\1#1"),
    (r"^add_embedding\.proj\.", "text_pooling.project_out."),
    (r"^add_embedding\.norm2\.", "text_pooling.norm_out."),
    (r"^conv_norm_out\.", "norm_out.norm."),
)
_BLOCKS: tuple[Rule, ...] = (
    (r"(\.spatial|\.downsample|\.upsample)\.norm([12])\.", r"\1.norm\2.norm."),
    (r"\.time_emb_proj\.", ".time."),
    (r"\.conv_shortcut\.", ".skip."),
    (r"\.residual\.temporal\.conv(\d)\.0\.", lambda match: f".residual.temporal.norms.{int(match[1]) - 1}.norm."),
    # Entry 2 of a unit is its convolution, or from the second on its dropout, which has no weights.
    (r"\.residual\.temporal\.conv(\d)\.[23]\.", lambda match: f".residual.temporal.convs.{int(match[1]) - 1}."),
    (r"\.joint\.group_norm\.", ".joint.norm.norm."),
    (r"\.joint\.norm_cross\.", ".joint.text_norm."),
    (r"\.joint\.add_k_proj\.(weight|bias)", r".joint.text_key_value.\1#0"),
    (r"\.joint\.add_v_proj\.(weight|bias)", r".joint.text_key_value.\1#1"),
    *TRANSFORMERS,
)


def diffusers_keys(residual_blocks: tuple[int, ...]) -> KeyMap:
    """Names of diffusers' and Show-1's U-Nets to ours, for a number of residual blocks in each level."""
    upwards = [blocks + 1 for blocks in reversed(residual_blocks)]
    starts = {
        # A level has one stage more on the way down, which halves it.
        "down": [0, *accumulate(blocks + 1 for blocks in residual_blocks)],
        "up": [0, *accumulate(upwards)],
    }

    def member(match: re.Match[str]) -> str:
        stage = starts[match[1]][int(match[2])] + int(match[4])
        return f"skeleton.{match[1]}.{stage}.{_PARTS[match[3]]}."

    def middle(match: re.Match[str]) -> str:
        return f"skeleton.middle.{match[2]}.{_PARTS[match[1]]}."

    def last(match: re.Match[str]) -> str:
        way, level = match[1], int(match[2])
        return f"skeleton.{way}.{starts[way][level + 1] - 1}.{way}sample."

    places: tuple[Rule, ...] = (
        (rf"^(down|up)_blocks\.(\d+)\.{_MEMBER}", member),
        (rf"^mid_block\.{_MEMBER}", middle),
        (r"^(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.", last),
    )
    return KeyMap(
        rules=(*_EMBEDDINGS, *places, *_BLOCKS),
        axes=((r"\.project_(in|out)\.weight$", 2), (r"\.temporal\.convs\.\d+\.weight$", 4)),
    )


# What all these networks are built with; the first of each is Show-1's.
_BUILT_WITH: Mapping[str, tuple[object, ...]] = {
    "act_fn": (ACTIVATION,),
    "cross_attention_norm": ("group_norm",),
    "encoder_hid_dim_type": ("text_proj", None),
    "addition_embed_type": ("text",),
    "class_embed_type": ("timestep", None),
    "resnet_time_scale_shift": ("scale_shift",),
    "only_cross_attention": (False,),
    "norm_eps": (1e-5,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "time_embedding_type": ("positional",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (ACTIVATION, None),
}


def unet_component(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Component:
    """The denoiser of a stage on pixels from diffusers' or own names.

    Args:
        tensors: of the denoiser alone.
        settings: its `config.json`; where it is silent, or not given, what shapes leave open is as released.

    Raises:
        ValueError: the settings say what no network of these stages is built with.
        LookupError: tensors that every such network has are missing.
    """
    settings = settings or {}
    _check_settings(settings)
    if _MARK in tensors:
        tensors = diffusers_keys(_residual_blocks(tensors))(tensors)
    layout = UNetLayout.of(tensors, residual="residual.spatial")
    upscales = "noise_embedding.hidden.weight" in tensors
    heads = settings.get("attention_head_dim", PixelUNetConfig.head_width)
    config = PixelUNetConfig(
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        model_channels=layout.model_channels,
        channel_mult=layout.channel_mult,
        num_res_blocks=layout.residual_blocks,
        attention_factors=layout.attention_factors,
        embedding_width=tensors["time_embedding.out.weight"].shape[0],
        text_width=tensors["text_in.weight"].shape[1],
        context_width=tensors["text_in.weight"].shape[0],
        pooling_heads=settings.get("addition_embed_type_num_heads", PixelUNetConfig.pooling_heads),
        # One setting: the width of spatial heads, and the number of temporal ones.
        head_width=heads,
        temporal="skeleton.middle.0.attention.temporal.project_in.weight" in tensors,
        temporal_heads=heads,
        noise_levels=NOISE_LEVELS if upscales else 0,
        residual_divisor=settings.get("resnet_out_scale_factor", UPSCALER_DIVISOR if upscales else 1.0),
        norm_groups=settings.get("norm_num_groups", PixelUNetConfig.norm_groups),
    )
    _check_heads(config)
    return Component(PixelUNet, config, dict(tensors))


def _check_heads(config: PixelUNetConfig) -> None:
    """Before anything is built: what a file says of heads, or the release where it is silent, fits the widths."""
    levels = {2**level: round(config.model_channels * factor) for level, factor in enumerate(config.channel_mult)}
    # The middle attends too, at the width of the last level.
    for factor in sorted({*config.attention_factors, max(levels)} & levels.keys()):
        if levels[factor] % config.head_width or levels[factor] % config.temporal_heads:
            raise ValueError(
                f"attention_head_dim is {config.head_width}, expected a divisor of {levels[factor]}, the width of a "
                "level with attention"
            )
    if config.text_width % config.pooling_heads:
        raise ValueError(
            f"addition_embed_type_num_heads is {config.pooling_heads}, expected a divisor of {config.text_width}, the "
            "width of the text"
        )


def _residual_blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    levels = count(tensors, r"^down_blocks\.(\d+)\.")
    return tuple(count(tensors, rf"^down_blocks\.{level}\.resnets\.(\d+)\.") for level in range(levels))


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name, expected in _BUILT_WITH.items():
        if name in settings and settings[name] not in expected:
            raise ValueError(f"{name} is {settings[name]!r}, expected {expected[0]!r}")
    for name in ("attention_head_dim", "addition_embed_type_num_heads", "norm_num_groups"):
        if name in settings and not (isinstance(settings[name], int) and settings[name] > 0):
            raise ValueError(f"{name} is {settings[name]!r}, expected a number")
    # Once altogether: behind the sum of the embeddings, or in every block.
    if "resnet_skip_time_act" in settings:
        once = settings["resnet_skip_time_act"] == (settings.get("time_embedding_act_fn") is not None)
        if not once:
            raise ValueError("the embedding of the diffusion time must be activated once")
    divisor = settings.get("resnet_out_scale_factor", 1.0)
    if settings.get("mid_block_scale_factor", divisor) != divisor:
        raise ValueError("mid_block_scale_factor is not resnet_out_scale_factor")


_MARK = "add_embedding.pool.q_proj.weight"
_OWN_MARK = "text_pooling.query.weight"


def _denoiser(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a denoiser with pooled text, below any prefix; or none."""
    for prefix in ("model.diffusion_model.", "diffusion_model.", "unet.", "module.", ""):
        unet = strip_prefix(tensors, prefix)
        if _MARK in unet or _OWN_MARK in unet:
            return unet
    return {}


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return bool(_denoiser(tensors))


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if options.ema:
        raise CheckpointError(f"{name} has no averaged (EMA) weights beside its own: choose the training weights.")
    settings = read_settings(name, metadata.get(UNET))
    try:
        component = unet_component(_denoiser(tensors), settings)
    except ValueError as error:
        raise CheckpointError(
            f"{name}: its tensors or unet/config.json are not those of a stage of Show-1 ({error}): it is damaged, or "
            "of another model."
        ) from error
    components = {MODEL: component}
    text = strip_prefix(tensors, "text_encoder.")
    if text:
        components[TEXT_ENCODER] = Component(None, "t5 xxl", text)
    schedule = read_schedule(name, metadata.get(SCHEDULER), SCHEDULES[_stage(name, component.config)])
    return Checkpoint(name, "show1", components, LATENT, schedule)


def _stage(name: str, config: object) -> PixelStage:
    assert isinstance(config, PixelUNetConfig)
    if config.stage is not None:
        return config.stage
    layers = "layers" if config.temporal else "no layers"
    level = "a" if config.noise_levels else "no"
    raise CheckpointError(
        f"{name} is a pixel network with {config.in_channels} input channels, {layers} over time and {level} noise "
        "level, which is no stage of Show-1. Expected 3 channels (base), 7 (interpolation) or 6 and a noise level "
        "(sr1), all with layers over time, or 6 and a noise level without them (the first frame's super-resolution, "
        "DeepFloyd IF-II): choose one of these files."
    )


FAMILY = Family("show1", _recognise, _read)
