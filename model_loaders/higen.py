"""HiGen and ModelScopeT2V checkpoints: released layout, and ModelScopeT2V in diffusers' layout.

The second super-resolution of Show-1 has ModelScopeT2V's layout and is read here.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig
from ..kernels.sampling.schedules import NoiseSchedule
from .checkpoint import MODEL, TEXT_ENCODER, VAE, Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .files import SCHEDULER, UNET
from .keymap import KeyMap, Rule, strip_prefix
from .scheduler import read_schedule, read_settings
from .unet_layout import DIFFUSERS_RESIDUAL, RESIDUAL, UNetLayout, count, diffusers_places

# Latents of Stable Diffusion, frame by frame.
LATENT = LatentSpec(4, 8, 1, 0.18215, 0.0)
HIGEN_SCHEDULE = NoiseSchedule(0.00085, 0.012, zero_terminal_snr=True, prediction="velocity", offset_noise=0.1, eta=0.0)
MODELSCOPE_SCHEDULE = NoiseSchedule(0.00085, 0.012, eta=0.0)
SHOW1_MARK = "transfromer_in_opt"
"""A setting that only the configurations of Show-1's networks have, so spelled."""
STEM_HEADS = 8
"""Heads of the first temporal transformer in every released model; tells the width of a head from its shape."""


def _down(part: str, place: str) -> Rule:
    # Entry 0 of the released list is the stem, which stands apart here.
    return rf"^input_blocks\.(\d+)\.{part}", lambda match: f"skeleton.down.{int(match[1]) - 1}.{place}."


_PLACES: tuple[Rule, ...] = (
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^input_blocks\.0\.1\.", "temporal_in."),
    (r"^img_embedding\.", "prior_in."),
    _down(r"op\.", "downsample.conv"),
    _down(r"0\.", "residual"),
    _down(r"1\.", "attention.spatial"),
    _down(r"2\.", "attention.temporal"),
    (r"^middle_block\.0\.", "skeleton.middle.0.residual."),
    (r"^middle_block\.1\.", "skeleton.middle.0.attention.spatial."),
    (r"^middle_block\.2\.", "skeleton.middle.0.attention.temporal."),
    (r"^middle_block\.3\.", "skeleton.middle.1.residual."),
    (r"^output_blocks\.(\d+)\.[123]\.conv\.", r"skeleton.up.\1.upsample.conv."),
    (r"^output_blocks\.(\d+)\.0\.", r"skeleton.up.\1.residual."),
    (r"^output_blocks\.(\d+)\.1\.", r"skeleton.up.\1.attention.spatial."),
    (r"^output_blocks\.(\d+)\.2\.", r"skeleton.up.\1.attention.temporal."),
    (r"^out\.0\.", "norm_out.norm."),
    (r"^out\.2\.", "conv_out."),
    (r"^time_embed\.0\.", "time_embedding.hidden."),
    (r"^time_embed\.2\.", "time_embedding.out."),
    (r"^msim_embedding\.0\.", "motion_embedding.hidden."),
    (r"^msim_embedding\.2\.", "motion_embedding.out."),
    (r"^asim_embedding\.0\.", "appearance_embedding.hidden."),
    (r"^asim_embedding\.2\.", "appearance_embedding.out."),
)

_RESIDUAL: tuple[Rule, ...] = (
    (r"\.residual\.temopral_conv\.conv1\.2\.", ".residual.temporal.convs.0."),
    (
        r"\.residual\.temopral_conv\.conv(\d)\.0\.",
        lambda match: f".residual.temporal.norms.{int(match[1]) - 1}.norm.",
    ),
    (r"\.residual\.temopral_conv\.conv(\d)\.3\.", lambda match: f".residual.temporal.convs.{int(match[1]) - 1}."),
    (r"\.residual\.(?!temporal\.)", ".residual.spatial."),
    *RESIDUAL,
)

_FEED_FORWARD: tuple[Rule, ...] = (
    (r"\.ff\.net\.0\.proj\.", ".feed_forward.inner."),
    (r"\.ff\.net\.2\.", ".feed_forward.out."),
)

TRANSFORMERS: tuple[Rule, ...] = (
    (r"(\.spatial|\.temporal|^temporal_in)\.norm\.", r"\1.norm.norm."),
    (r"\.proj_(in|out)\.", r".project_\1."),
    (r"\.transformer_blocks\.0\.", ".block."),
    (r"(\.spatial\.block)\.norm1\.", r"\1.spatial_norm."),
    (r"(\.spatial\.block)\.norm2\.", r"\1.text_norm."),
    (r"(\.spatial\.block)\.attn1\.", r"\1.spatial."),
    (r"(\.spatial\.block)\.attn2\.", r"\1.text."),
    (r"\.block\.attn(\d)\.", r".block.attention\1."),
    (r"\.block\.norm3\.", ".block.feed_forward_norm."),
    (r"\.text\.to_q\.", ".text.query."),
    (r"\.text\.to_k\.weight", ".text.key_value.weight#0"),
    (r"\.text\.to_v\.weight", ".text.key_value.weight#1"),
    (r"\.to_q\.(weight|bias)", r".qkv.\1#0"),
    (r"\.to_k\.(weight|bias)", r".qkv.\1#1"),
    (r"\.to_v\.(weight|bias)", r".qkv.\1#2"),
    (r"\.to_out\.0\.", ".out."),
    *_FEED_FORWARD,
)

_RESAMPLER: tuple[Rule, ...] = (
    (r"^context_embedding\.tokens", "resampler.tokens.weight"),
    (r"^context_embedding\.input_mapping\.", "resampler.project_in."),
    (r"^context_embedding\.output_mapping\.", "resampler.project_out."),
    (r"^context_embedding\.context_transformer\.", "resampler.blocks."),
    (r"^(resampler\.blocks\.\d+)\.norm3\.", r"\1.feed_forward_norm."),
    (r"^(resampler\.blocks\.\d+)\.attn(\d)\.to_q\.", r"\1.text\2.query."),
    (r"^(resampler\.blocks\.\d+)\.attn(\d)\.to_k\.weight", r"\1.text\2.key_value.weight#0"),
    (r"^(resampler\.blocks\.\d+)\.attn(\d)\.to_v\.weight", r"\1.text\2.key_value.weight#1"),
    (r"^(resampler\.blocks\.\d+)\.attn(\d)\.to_out\.0\.", r"\1.text\2.out."),
)

UNET_KEYS = KeyMap(
    rules=(*_RESAMPLER, *_PLACES, *_RESIDUAL, *TRANSFORMERS),
    axes=(
        (r"\b(project_in|project_out)\.weight$", 2),
        (r"\.temporal\.convs\.\d+\.weight$", 4),
    ),
)


def diffusers_to_released(residual_blocks: int) -> KeyMap:
    """Names of diffusers' `UNet3DConditionModel` to released ones, for a number of residual blocks per level."""
    parts = {"resnets": "0.", "temp_convs": "0.temopral_conv.", "attentions": "1.", "temp_attentions": "2."}
    return KeyMap(
        rules=(
            (r"^transformer_in\.", "input_blocks.0.1."),
            # Behind the residual block stand both transformers, where the level has them.
            *diffusers_places(residual_blocks, parts, "op.", lambda level: 3),
            (r"^mid_block\.(resnets|temp_convs)\.0\.", r"middle_block.0.\1."),
            (r"^mid_block\.(resnets|temp_convs)\.1\.", r"middle_block.3.\1."),
            (r"^(middle_block\.\d)\.resnets\.", r"\1."),
            (r"^(middle_block\.\d)\.temp_convs\.", r"\1.temopral_conv."),
            (r"^mid_block\.attentions\.0\.", "middle_block.1."),
            (r"^mid_block\.temp_attentions\.0\.", "middle_block.2."),
            *DIFFUSERS_RESIDUAL,
        )
    )


def unet_component(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Component:
    """The denoiser of either model from released, diffusers' or own names.

    `settings` are those of Show-1's class for the ModelScopeT2V layout, where its configuration is beside the weights.
    """
    if "transformer_in.proj_in.weight" in tensors:
        tensors = diffusers_to_released(count(tensors, r"^down_blocks\.0\.resnets\.(\d+)\."))(tensors)
    if "input_blocks.0.1.proj_in.weight" in tensors:
        tensors = UNET_KEYS({name: _without_batch(name, tensor) for name, tensor in tensors.items()})
    layout = UNetLayout.of(tensors, residual="residual.spatial")
    head_width = max(1, tensors["temporal_in.project_in.weight"].shape[0] // STEM_HEADS)
    shared: dict[str, Any] = {
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "model_channels": layout.model_channels,
        "channel_mult": layout.channel_mult,
        "num_res_blocks": layout.num_res_blocks,
        "attention_factors": layout.attention_factors,
        "head_width": head_width,
        "stem_heads": STEM_HEADS,
        "context_width": tensors["skeleton.middle.0.attention.spatial.block.text.key_value.weight"].shape[1],
    }
    if "resampler.tokens.weight" not in tensors:
        shared |= show1_settings(settings or {}, [round(layout.model_channels * part) for part in layout.channel_mult])
        return Component(SpaceTimeUNet, SpaceTimeUNetConfig(**shared), dict(tensors))
    config = HiGenUNetConfig(
        **shared,
        text_width=tensors["resampler.project_in.weight"].shape[1],
        resampled_tokens=tensors["resampler.tokens.weight"].shape[0],
        resampler_depth=count(tensors, r"^resampler\.blocks\.(\d+)\."),
    )
    return Component(HiGenUNet, config, dict(tensors))


def show1_settings(settings: Mapping[str, Any], widths: list[int]) -> dict[str, Any]:
    """What Show-1's second super-resolution says that shapes do not: there the entry of each level counts its heads.

    Temporal convolutions and the first temporal transformer have the groups of the released models there, whatever the
    other norms have. `widths` are those of the levels.

    Raises:
        ValueError: the numbers do not fit the levels.
    """
    if SHOW1_MARK not in settings:
        return {}
    heads, groups = settings.get("attention_head_dim", 64), settings.get("norm_num_groups", 32)
    levels = len(widths)
    heads = tuple(heads) if isinstance(heads, list) else (heads,) * levels
    if len(heads) != levels or not all(isinstance(number, int) and number > 0 for number in (*heads, groups)):
        raise ValueError(
            f"attention_head_dim is {list(heads)} and norm_num_groups {groups}, expected {levels} numbers and one"
        )
    for level, (number, width) in enumerate(zip(heads, widths, strict=True), 1):
        if width % number:
            raise ValueError(
                f"attention_head_dim is {number}, expected a divisor of {width}, the width of level {level}"
            )
    return {"heads": heads, "norm_groups": groups, "clip_groups": SpaceTimeUNetConfig.norm_groups}


def _without_batch(name: str, tensor: Tensor) -> Tensor:
    """The learned tokens were released with a batch axis."""
    return tensor[0] if name == "context_embedding.tokens" and tensor.ndim == 3 and len(tensor) == 1 else tensor


def _denoiser(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a denoiser with temporal convolutions, in any layout, below any prefix; or none."""
    for prefix in ("model.diffusion_model.", "diffusion_model.", "unet.", "module.", ""):
        unet = strip_prefix(tensors, prefix)
        marks = ("input_blocks.0.1.proj_in.weight", "transformer_in.proj_in.weight", "temporal_in.project_in.weight")
        if any(mark in unet for mark in marks):
            return unet
    return {}


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return bool(_denoiser(tensors))


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if options.ema:
        raise CheckpointError(f"{name} has no averaged (EMA) weights beside its own: choose the training weights.")
    settings = read_settings(name, metadata.get(UNET))
    try:
        components = {MODEL: unet_component(_denoiser(tensors), settings)}
    except ValueError as error:
        raise CheckpointError(
            f"{name}: its tensors or unet/config.json are not those of HiGen, ModelScope or Show-1 ({error}): it is "
            "damaged, or of another model."
        ) from error
    # A folder has these beside the denoiser; ComfyUI has the networks.
    parts = ((VAE, "vae.", "stable diffusion"), (TEXT_ENCODER, "text_encoder.", "clip h"))
    for role, prefix, network in parts:
        if any(key.startswith(prefix) for key in tensors):
            components[role] = Component(None, network, strip_prefix(tensors, prefix))
    if components[MODEL].network is HiGenUNet:
        return Checkpoint(name, "higen", components, LATENT, HIGEN_SCHEDULE)
    system = "show1" if SHOW1_MARK in settings else "modelscope"
    schedule = read_schedule(name, metadata.get(SCHEDULER), MODELSCOPE_SCHEDULE)
    return Checkpoint(name, system, components, LATENT, schedule)


FAMILY = Family("higen", _recognise, _read)
