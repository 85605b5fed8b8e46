"""Motion modules for Stable Diffusion 1.5: AnimateDiff's files, and HARIVO's with mapping network and frame tokens."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..kernels.layers.embeddings import frame_positions
from ..kernels.networks.harivo import FrameTokensConfig, MappingConfig, MotionConfig, MotionNetwork
from ..kernels.sampling.schedules import NoiseSchedule
from .checkpoint import Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .files import save_tensors
from .keymap import KeyMap, Rule
from .unet_layout import count

MOTION = "motion_modules"
"""Role of the network in a checkpoint."""
LATENT = LatentSpec(4, 8, 1, 0.18215, 0.0)
SCHEDULE = NoiseSchedule(0.00085, 0.012, spacing="even")
SPACINGS: dict[str, Literal["even", "roots"]] = {"linear_equal_spacing": "even", "sqrt_spacing": "roots"}
LEVELS = 4
"""Of Stable Diffusion 1.5's UNet."""
_V1_FRAMES = 24
# They can be computed; only their length says something.
_POSITION_TABLE = re.compile(r"\.attention_blocks\.\d+\.pos_encoder\.pe$")

_MODULE: tuple[Rule, ...] = (
    (r"\.temporal_transformer\.norm\.", ".norm.norm."),
    (r"\.temporal_transformer\.proj_(in|out)\.", r".project_\1."),
    (r"\.temporal_transformer\.transformer_blocks\.0\.", ".block."),
    (r"\.block\.attention_blocks\.(\d)\.", lambda match: f".block.attention{int(match[1]) + 1}."),
    (r"\.block\.norms\.(\d)\.", lambda match: f".block.norm{int(match[1]) + 1}."),
    (r"\.ff\.net\.0\.proj\.", ".feed_forward.inner."),
    (r"\.ff\.net\.2\.", ".feed_forward.out."),
    (r"\.ff_norm\.", ".feed_forward_norm."),
)
_PARTS: tuple[Rule, ...] = (
    (r"^mapping_network\.conv\.(\d)\.", lambda match: f"mapping.convs.{int(match[1]) // 2}."),
    (r"^mapping_network\.norm\.", "mapping.norm."),
    (r"^mapping_network\.attn\.", "mapping."),
    (r"^mapping_network\.proj_out\.", "mapping.project_out."),
    (r"^frame_tokens\.layers\.0\.0\.", "tokens.project_in."),
    (r"^frame_tokens\.layers\.2\.weight", "tokens.mix.weight"),
    (r"^frame_tokens\.layers\.([456])\.0\.", lambda match: f"tokens.layers.{int(match[1]) - 4}."),
    (r"\.to_q\.weight", ".qkv.weight#0"),
    (r"\.to_k\.weight", ".qkv.weight#1"),
    (r"\.to_v\.weight", ".qkv.weight#2"),
    (r"\.to_out\.0\.", ".out."),
)


def released_keys(blocks_per_level: int) -> KeyMap:
    """Released names to ours, for a UNet with so many residual blocks in a level on the way down."""
    down, up = blocks_per_level, blocks_per_level + 1
    places: tuple[Rule, ...] = (
        (r"^down_blocks\.(\d+)\.motion_modules\.(\d+)", lambda match: f"down.{int(match[1]) * down + int(match[2])}"),
        (r"^mid_block\.motion_modules\.(\d+)", r"middle.\1"),
        (r"^up_blocks\.(\d+)\.motion_modules\.(\d+)", lambda match: f"up.{int(match[1]) * up + int(match[2])}"),
    )
    return KeyMap((*places, *_MODULE, *_PARTS), axes=((r"^tokens\.mix\.weight$", 2),))


def save_motion(path: Path | str, network: MotionNetwork, schedule: NoiseSchedule, **metadata: object) -> None:
    """Write a network as one file that loaders of AnimateDiff's modules read as well.

    Args:
        path: of the .safetensors file.
        network: with or without the parts that only HARIVO has.
        schedule: that it was trained with.
        metadata: more to be said of it, such as fps=6, resolution=256.
    """
    config = network.config
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _released(network).items()}
    for name in [name for name in tensors if name.endswith(".norms.0.weight")]:
        table = frame_positions(config.max_frames, len(tensors[name]), tensors[name])[None]
        for index in range(2):
            place = name.replace(".norms.0.weight", f".attention_blocks.{index}.pos_encoder.pe")
            tensors[place] = table.clone()
    said = {
        "format": "harivo",
        "format_version": 1,
        "base_model": "sd15",
        "num_frames": config.max_frames,
        "frame_tokens": config.tokens.per_frame if config.tokens else 0,
        "mapping_heads": config.mapping.heads if config.mapping else 0,
        "prediction": "eps",
        "beta_schedule": next(name for name, spacing in SPACINGS.items() if spacing == schedule.spacing),
        "beta_start": schedule.linear_start,
        "beta_end": schedule.linear_end,
        **metadata,
    }
    save_tensors(path, tensors, said)


def _released(network: MotionNetwork) -> dict[str, Tensor]:
    """Our tensors by released names."""
    down, up = network.config.blocks_per_level, network.config.blocks_per_level + 1

    def place(block: str, per_level: int, index: str) -> str:
        level, within = divmod(int(index), per_level)
        return f"{block}_blocks.{level}.motion_modules.{within}"

    rules: tuple[Rule, ...] = (
        (r"^down\.(\d+)", lambda match: place("down", down, match[1])),
        (r"^up\.(\d+)", lambda match: place("up", up, match[1])),
        (r"^middle\.(\d+)", r"mid_block.motion_modules.\1"),
        (r"(\.motion_modules\.\d+)\.norm\.norm\.", r"\1.temporal_transformer.norm."),
        (r"(\.motion_modules\.\d+)\.project_(in|out)\.", r"\1.temporal_transformer.proj_\2."),
        (r"\.block\.", ".temporal_transformer.transformer_blocks.0."),
        (r"\.attention(\d)\.out\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.to_out.0."),
        (r"\.attention(\d)\.", lambda match: f".attention_blocks.{int(match[1]) - 1}."),
        (r"\.norm(\d)\.", lambda match: f".norms.{int(match[1]) - 1}."),
        (r"\.feed_forward\.inner\.", ".ff.net.0.proj."),
        (r"\.feed_forward\.out\.", ".ff.net.2."),
        (r"\.feed_forward_norm\.", ".ff_norm."),
        (r"^mapping\.convs\.(\d)\.", lambda match: f"mapping_network.conv.{2 * int(match[1])}."),
        (r"^mapping\.project_out\.", "mapping_network.proj_out."),
        (r"^mapping\.out\.", "mapping_network.attn.to_out.0."),
        (r"^mapping\.qkv\.", "mapping_network.attn.qkv."),
        (r"^mapping\.", "mapping_network."),
        (r"^tokens\.project_in\.", "frame_tokens.layers.0.0."),
        (r"^tokens\.mix\.", "frame_tokens.layers.2."),
        (r"^tokens\.layers\.(\d)\.", lambda match: f"frame_tokens.layers.{int(match[1]) + 4}.0."),
    )
    tensors: dict[str, Tensor] = {}
    for name, tensor in KeyMap(rules)(network.state_dict()).items():
        if name.endswith(".qkv.weight"):
            parts = zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True)
            tensors |= {name.replace("qkv", part): weight for part, weight in parts}
        else:
            tensors[name] = tensor[..., None] if name == "frame_tokens.layers.2.weight" else tensor
    return tensors


def _wanted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Motion modules and what HARIVO has beside them, below any prefix."""
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    parts = ("mapping_network.", "frame_tokens.")
    return {name: tensor for name, tensor in bare.items() if "motion_modules." in name or name.startswith(parts)}


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return any("motion_modules." in name for name in tensors)


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    wanted = _wanted(tensors)
    if any(".processor." in key for key in wanted):
        raise CheckpointError(
            f"{name} is a MotionLoRA: changes to motion modules, not modules. Expected mm_sd_v14, mm_sd_v15, "
            "mm_sd_v15_v2, v3_sd15_mm, or a HARIVO file."
        )
    levels = count(wanted, r"^down_blocks\.(\d+)\.")
    if levels != LEVELS:
        raise CheckpointError(
            f"{name} has motion modules for a UNet of {levels} levels, expected the {LEVELS} of Stable Diffusion 1.5: "
            "modules for SDXL and other models do not fit."
        )
    blocks = count(wanted, r"^down_blocks\.0\.motion_modules\.(\d+)\.")
    tables = [tensor for key, tensor in wanted.items() if _POSITION_TABLE.search(key)]
    frames = {table.shape[1] for table in tables} or {int(metadata.get("num_frames", _V1_FRAMES))}
    if len(frames) > 1:
        raise CheckpointError(f"{name} has position tables of {sorted(frames)} frames, expected the same in all.")
    renamed = released_keys(blocks)({key: tensor for key, tensor in wanted.items() if not _POSITION_TABLE.search(key)})
    longest = frames.pop()
    config = MotionConfig(
        widths=tuple(len(renamed[f"down.{level * blocks}.norm.norm.weight"]) for level in range(levels)),
        blocks_per_level=blocks,
        middle="middle.0.norm.norm.weight" in renamed,
        max_frames=longest,
        mapping=_mapping(renamed, metadata),
        tokens=_tokens(renamed, longest),
    )
    if longest == _V1_FRAMES and config == MotionConfig(config.widths, blocks):
        config = MotionConfig(config.widths, blocks, joint_norms=metadata.get("format") != "harivo")
    component = Component(MotionNetwork, config, renamed)
    return Checkpoint(name, "harivo", {MOTION: component}, LATENT, _schedule(name, metadata), dict(metadata))


def _mapping(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> MappingConfig | None:
    if "mapping.convs.0.weight" not in tensors:
        return None
    weight, inner = tensors["mapping.convs.0.weight"], tensors["mapping.qkv.weight"].shape[0] // 3
    heads = int(metadata.get("mapping_heads", 8))
    depth, height, width = weight.shape[2:]
    return MappingConfig(weight.shape[0], (depth, height, width), heads, inner // heads)


def _tokens(tensors: Mapping[str, Tensor], frames: int) -> FrameTokensConfig | None:
    if "tokens.mix.weight" not in tensors:
        return None
    rows, text_tokens = tensors["tokens.mix.weight"].shape
    return FrameTokensConfig(tensors["tokens.project_in.weight"].shape[0], text_tokens, frames, rows // frames)


def _schedule(name: str, metadata: Mapping[str, str]) -> NoiseSchedule:
    """What the file says; released motion modules say nothing and have equally spaced betas."""
    spacing = metadata.get("beta_schedule", "linear_equal_spacing")
    if spacing not in SPACINGS or metadata.get("prediction", "eps") != "eps":
        raise CheckpointError(
            f"{name} says beta_schedule {spacing!r} and prediction {metadata.get('prediction')!r}, expected one of "
            f"{', '.join(SPACINGS)} and 'eps'."
        )
    start, end = float(metadata.get("beta_start", 0.00085)), float(metadata.get("beta_end", 0.012))
    return NoiseSchedule(start, end, spacing=SPACINGS[spacing])


FAMILY = Family("harivo", _recognise, _read)
