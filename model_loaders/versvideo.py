"""VersVideo's files: names of Stable Diffusion's U-Net, and beside them what is new (there are no released weights).

Training checkpoints hold the experts of every feed-forward layer and are merged when they are read; exported ones hold
the merged layers.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..kernels.layers.excitation import shift_taps
from ..kernels.layers.experts import EXPERT, merge_experts
from ..kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from ..kernels.sampling.schedules import NoiseSchedule, Spacing
from .checkpoint import MODEL, TEXT_ENCODER, VAE, Checkpoint, Component, Family, LatentSpec, ReadOptions
from .errors import CheckpointError
from .files import save_tensors
from .keymap import KeyMap, Rule, check_tensors, strip_prefix
from .unet_layout import PLACES, RESIDUAL, UNetLayout, count

LATENT = LatentSpec(4, 8, 1, 0.18215, 0.0)
SCHEDULE = NoiseSchedule(0.00085, 0.012, prediction="velocity", eta=0.0)
SPACINGS: dict[str, Spacing] = {"sqrt_spacing": "roots", "linear_equal_spacing": "even"}
FORMAT, VERSION = "versvideo", 1
HEADS = 8
_MARK = "input_blocks.1.0.in_layers.2.gate"
_CLIP = "cond_stage_model.transformer."
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "")

EXCITATION: tuple[Rule, ...] = (
    (r"\.(conv[12])\.(weight|bias)$", r".\1.spatial.\2"),
    (r"\.(conv[12])\.gate$", r".\1.gate.weight"),
    (r"\.(conv[12])\.ste\.", r".\1.place."),
    (r"\.(conv[12])\.ce\.", r".\1.channel."),
    (r"\.(conv[12])\.me\.", r".\1.motion."),
    (r"\.(conv[12])\.proj\.", r".\1.project."),
)
"""Rules for the inside of a multi-excitation convolution."""

_ATTENTION: tuple[Rule, ...] = (
    (r"\.attention\.(?!temporal\.)", ".attention.spatial."),
    (r"(\.attention\.(?:spatial|temporal))\.norm\.", r"\1.norm.norm."),
    (r"(\.attention\.(?:spatial|temporal))\.proj_(in|out)\.", r"\1.project_\2."),
    (r"\.transformer_blocks\.", ".block.blocks."),
    (r"(\.spatial\.block\.blocks\.\d+)\.norm1\.", r"\1.spatial_norm."),
    (r"(\.spatial\.block\.blocks\.\d+)\.norm2\.", r"\1.text_norm."),
    (r"(\.spatial\.block\.blocks\.\d+)\.attn1\.", r"\1.spatial."),
    (r"(\.spatial\.block\.blocks\.\d+)\.attn2\.", r"\1.text."),
    (r"(\.temporal\.block\.blocks\.\d+)\.attn(\d)\.", r"\1.attention\2."),
    (r"(\.blocks\.\d+)\.norm3\.", r"\1.feed_forward_norm."),
    (r"\.ff\.((?:experts\.\d+\.)?)net\.0\.proj\.", r".feed_forward.\1inner."),
    (r"\.ff\.((?:experts\.\d+\.)?)net\.2\.", r".feed_forward.\1out."),
    (r"\.text\.to_q\.", ".text.query."),
    (r"\.text\.to_k\.weight", ".text.key_value.weight#0"),
    (r"\.text\.to_v\.weight", ".text.key_value.weight#1"),
    (r"\.to_q\.weight", ".qkv.weight#0"),
    (r"\.to_k\.weight", ".qkv.weight#1"),
    (r"\.to_v\.weight", ".qkv.weight#2"),
    (r"\.to_out\.0\.", ".out."),
)

UNET_KEYS = KeyMap(
    rules=(*PLACES, *RESIDUAL, *EXCITATION, *_ATTENTION),
    axes=(
        (r"\.conv[12]\.(shift|temporal|gate|channel\.temporal)\.weight$", 4),
        (r"\.(squeeze|expand|project|project_in|project_out)\.weight$", 2),
    ),
)

_NUMBERS: tuple[Rule, ...] = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^norm_out\.norm\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^time_embedding\.hidden\.", "time_embed.0."),
    (r"^time_embedding\.out\.", "time_embed.2."),
    (r"^skeleton\.middle\.0\.residual\.", "middle_block.0."),
    (r"^skeleton\.middle\.0\.attention\.", "middle_block.1."),
    (r"^skeleton\.middle\.1\.residual\.", "middle_block.2."),
    (r"^skeleton\.down\.(\d+)\.", lambda match: f"input_blocks.{int(match[1]) + 1}."),
    (r"^skeleton\.up\.", "output_blocks."),
    (r"(put_blocks\.\d+)\.residual\.", r"\1.0."),
    (r"(put_blocks\.\d+)\.attention\.", r"\1.1."),
    (r"(put_blocks\.\d+)\.downsample\.conv\.", r"\1.0.op."),
)
# Ours to those of files, for the parts of a stage.
_PARTS: tuple[Rule, ...] = (
    (r"\.norm1\.norm\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time\.", ".emb_layers.1."),
    (r"\.norm2\.norm\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.skip\.", ".skip_connection."),
    (r"(_layers\.[23])\.spatial\.", r"\1."),
    (r"(_layers\.[23])\.gate\.weight$", r"\1.gate"),
    (r"(_layers\.[23])\.place\.", r"\1.ste."),
    (r"(_layers\.[23])\.channel\.", r"\1.ce."),
    (r"(_layers\.[23])\.motion\.", r"\1.me."),
    (r"(_layers\.[23])\.project\.", r"\1.proj."),
    (r"\.norm\.norm\.", ".norm."),
    (r"\.project_(in|out)\.", r".proj_\1."),
    (r"\.block\.blocks\.", ".transformer_blocks."),
    (r"\.spatial_norm\.", ".norm1."),
    (r"\.text_norm\.", ".norm2."),
    (r"\.feed_forward_norm\.", ".norm3."),
    (r"\.feed_forward\.((?:experts\.\d+\.)?)inner\.", r".ff.\1net.0.proj."),
    (r"\.feed_forward\.((?:experts\.\d+\.)?)out\.", r".ff.\1net.2."),
    (r"(blocks\.\d+)\.spatial\.", r"\1.attn1."),
    (r"(blocks\.\d+)\.text\.", r"\1.attn2."),
    (r"(blocks\.\d+)\.attention(\d)\.", r"\1.attn\2."),
    (r"\.query\.", ".to_q."),
    (r"(\.attn\d)\.out\.", r"\1.to_out.0."),
    # The transformer within frames keeps Stable Diffusion's place.
    (r"((?:put_blocks\.\d+|middle_block)\.1)\.spatial\.", r"\1."),
)
_STACKED = {".qkv.weight": ("to_q", "to_k", "to_v"), ".key_value.weight": ("to_k", "to_v")}
# Names of files whose tensors have more or fewer axes than ours.
_FILE_AXES = (
    (re.compile(r"_layers\.\d\.(temporal|proj)\.weight$"), 5),
    (re.compile(r"\.(squeeze|expand|proj_in|proj_out)\.weight$"), 4),
    (re.compile(r"\.(shift|ce\.temporal)\.weight$"), 3),
    (re.compile(r"\.gate$"), 1),
)


def save_unet(path: Path | str, network: VersVideoUNet, schedule: NoiseSchedule, **metadata: object) -> None:
    """Write a denoiser, with its experts or merged, as a file of the layout that `FAMILY` reads.

    Args:
        path: of the .safetensors file.
        network: in which layers over time may still have experts.
        schedule: that it was trained with.
        metadata: more to be said of it, such as variant="L", num_frames=16.
    """
    said = {
        "format": FORMAT,
        "format_version": VERSION,
        "prediction": "v" if schedule.prediction == "velocity" else "eps",
        "beta_schedule": next(name for name, spacing in SPACINGS.items() if spacing == schedule.spacing),
        "beta_start": schedule.linear_start,
        "beta_end": schedule.linear_end,
        "heads": network.config.heads,
        **metadata,
    }
    save_tensors(path, file_tensors(network.state_dict()), said)


def file_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's tensors by the names of files."""
    attends = {match[1] for name in tensors if (match := re.match(r"skeleton\.up\.(\d+)\.attention\.", name))}

    def upsampler(match: re.Match[str]) -> str:
        return f"output_blocks.{match[1]}.{2 if match[1] in attends else 1}.conv."

    rename = KeyMap(((r"^skeleton\.up\.(\d+)\.upsample\.conv\.", upsampler), *_NUMBERS, *_PARTS)).rename
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in _STACKED if name.endswith(ending)), None)
        if ending is None:
            out[rename(name)] = _as_in_files(rename(name), tensor)
        else:
            parts = tensor.chunk(len(_STACKED[ending]))
            out |= {
                rename(name).replace(ending, f".{part}.weight"): weight
                for part, weight in zip(_STACKED[ending], parts, strict=True)
            }
    return out


def _as_in_files(name: str, tensor: Tensor) -> Tensor:
    axes = next((axes for pattern, axes in _FILE_AXES if pattern.search(name)), tensor.ndim)
    return tensor.reshape(*tensor.shape[:axes], *[1] * (axes - tensor.ndim))


def unet_component(tensors: Mapping[str, Tensor], heads: int = HEADS) -> Component:
    """The denoiser from names of files; experts are merged, one tensor after the other.

    Raises:
        ValueError: layers of experts that do not belong together.
    """
    _check_experts(tensors)
    renamed = UNET_KEYS(merge_experts(tensors))
    for name in [name for name in renamed if re.search(r"\.conv[12]\.place\.weight$", name)]:
        shift, like = name.replace(".place.", ".shift."), name.replace(".place.weight", ".channel.squeeze.weight")
        # Files may leave out a shift that was not trained.
        taps = shift_taps(renamed[like].shape[1])[:, None, :, None]
        renamed.setdefault(shift, taps.to(renamed[like]))
    layout = UNetLayout.of({name.replace(".conv2.spatial.", ".conv2."): x for name, x in renamed.items()})
    middle = "skeleton.middle.0"
    kernel = renamed[f"{middle}.residual.conv1.motion.spatial.weight"]
    config = VersVideoUNetConfig(
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        model_channels=layout.model_channels,
        channel_mult=layout.channel_mult,
        num_res_blocks=layout.num_res_blocks,
        attention_factors=layout.attention_factors,
        heads=heads,
        context_width=renamed[f"{middle}.attention.spatial.block.blocks.0.text.key_value.weight"].shape[1],
        depth=count(renamed, r"^skeleton\.middle\.0\.attention\.spatial\.block\.blocks\.(\d+)\."),
        depthwise_motion=kernel.shape[1] == 1,
    )
    return Component(VersVideoUNet, config, renamed)


def _check_experts(tensors: Mapping[str, Tensor]) -> None:
    """As many experts in every layer within frames, and as many in every layer over time."""
    layers: dict[str, set[str]] = {}
    for name in tensors:
        layer = re.match(r"(.*\.ff)\.", name)
        if layer:
            expert = EXPERT.search(name)
            layers.setdefault(layer[1], set()).add(expert[1] if expert else "")
    for kind in ("spatial", "temporal"):
        found = {
            layer: len(experts) for layer, experts in layers.items() if (".temporal." in layer) == (kind[0] == "t")
        }
        different = [layer for layer in found if found[layer] != found[next(iter(found))]]
        if different:
            first = next(iter(found))
            raise ValueError(
                f"{first} has {found[first]} {kind} experts and {different[0]} has {found[different[0]]}, "
                "expected as many in all"
            )


_ADDED = re.compile(
    r"\.conv[12]\.(?!spatial\.)|\.attention\.temporal\.|\.attention\.spatial\.block\.blocks\.[1-9]\d*\."
)


def start_from_image_model(network: VersVideoUNet, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a network the weights of an image model, so that it computes that model's function for every frame.

    Args:
        network: of the image model's sizes; experts all start alike.
        tensors: of Stable Diffusion's U-Net by the names of its files, below their prefix or without.
        source: their file, for messages.

    Raises:
        CheckpointError: the image model is another one, or of other sizes.
    """
    unet = next(part for prefix in _PREFIXES if (part := strip_prefix(tensors, prefix)))
    image: dict[str, Tensor] = {}
    experts = network.config.spatial_experts
    for name, tensor in UNET_KEYS(unet).items():
        dealt = ".feed_forward." in name and experts > 1
        copies = [f".feed_forward.experts.{index}." for index in range(experts)] if dealt else [".feed_forward."]
        image |= {name.replace(".feed_forward.", copy): tensor for copy in copies}
    filled = {name: tensor for name, tensor in network.state_dict().items() if _ADDED.search(name)} | image
    check_tensors(network, filled, source)
    network.load_state_dict(filled)
    network.start_as_image_model()


def _denoiser(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the denoiser below any prefix, or none."""
    prefix = next((prefix for prefix in _PREFIXES if prefix + _MARK in tensors), None)
    if prefix is None:
        return {}
    inner = strip_prefix(tensors, prefix)
    return {name: tensor for name, tensor in inner.items() if not name.startswith(("first_stage_", "cond_stage_"))}


def _recognise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    return bool(_denoiser(tensors))


def _read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions) -> Checkpoint:
    if options.ema:
        raise CheckpointError(f"{name} has no averaged (EMA) weights beside its own: choose the training weights.")
    if (version := metadata.get("format_version", str(VERSION))) != str(VERSION):
        raise CheckpointError(f"{name} has format_version {version}, expected {VERSION}: update the pack.")
    try:
        component = unet_component(_denoiser(tensors), int(metadata.get("heads", HEADS)))
    except ValueError as error:
        raise CheckpointError(
            f"{name}: its tensors are not those of VersVideo ({error}): it is damaged, or of another model."
        ) from error
    components = {MODEL: component}
    # As in Stable Diffusion's own files; ComfyUI has the networks.
    for role, prefix, network in ((VAE, "first_stage_model.", "stable diffusion"), (TEXT_ENCODER, _CLIP, "clip")):
        if part := strip_prefix(tensors, prefix):
            components[role] = Component(None, network, part)
    return Checkpoint(name, "versvideo", components, LATENT, _schedule(name, metadata), dict(metadata))


def _schedule(name: str, metadata: Mapping[str, str]) -> NoiseSchedule:
    """What the file says; the paper's where it says nothing."""
    spacing, prediction = metadata.get("beta_schedule", "sqrt_spacing"), metadata.get("prediction", "v")
    if spacing not in SPACINGS or prediction != "v":
        raise CheckpointError(
            f"{name} says beta_schedule {spacing!r} and prediction {prediction!r}, expected one of "
            f"{', '.join(SPACINGS)} and 'v'."
        )
    start, end = float(metadata.get("beta_start", 0.00085)), float(metadata.get("beta_end", 0.012))
    return NoiseSchedule(start, end, prediction="velocity", spacing=SPACINGS[spacing], eta=0.0)


FAMILY = Family("versvideo", _recognise, _read)
