"""HARIVO and AnimateDiff on a Stable Diffusion 1.5 MODEL: wrappers around it, nothing inserted into it.

The image model keeps its weights, names and patches; without the wrappers it is bit for bit what it was.

Shapes: R rows of a call: the frames of all videos and guidance branches; F frames of a video, C channels, H, W latent
size, N text tokens, D their width.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...kernels.layers.chunking import map_images, residual_values, transformer_values
from ...kernels.networks.harivo import MotionConfig, MotionNetwork
from ...kernels.sampling.schedules import NoiseSchedule
from ..checkpoint import Checkpoint, read
from ..harivo import MOTION
from .compat import (
    model_management,
    model_patcher,
    model_sampling,
    openaimodel,
    ops,
    patcher_extension,
    supported_models,
    utils,
)
from .operations import network_operations
from .sampling import BETA_SCHEDULES

log = logging.getLogger(__name__)
_KEY = "weft_motion"
_FRAMES = "weft_motion_frames"
_NETWORK = "weft_motion_network"
_BETWEEN_LAYERS = {
    "emb_patch",
    "forward_timestep_embed_patch",
    "input_block_patch",
    "input_block_patch_after_skip",
    "middle_block_after_patch",
    "output_block_patch",
}
"""Patches that do not reach into transformers; others, such as IP-Adapter's, want all rows of a call at once."""


@dataclass(frozen=True)
class Motion:
    """A motion network as ComfyUI keeps it, and the file that it came from."""

    patcher: object
    checkpoint: Checkpoint

    @property
    def config(self) -> MotionConfig:
        """Configuration of the network."""
        config = self.checkpoint.component(MOTION).config
        assert isinstance(config, MotionConfig)
        return config


def load_motion(path: str, dtype: torch.dtype | None = None) -> Motion:
    """Read AnimateDiff's or HARIVO's motion modules.

    Raises:
        CheckpointError: the file is none of these, or does not fit.
    """
    checkpoint = read(path)
    component = checkpoint.component(MOTION)
    tensors = dict(component.tensors)
    device, offload = model_management.get_torch_device(), model_management.unet_offload_device()
    supported = [torch.float16, torch.bfloat16, torch.float32]
    weights = dtype or model_management.unet_dtype(
        model_params=utils.calculate_parameters(tensors), supported_dtypes=supported, weight_dtype=None
    )
    # Casting operations: the image model may run in another precision.
    network = MotionNetwork(
        component.config, dtype=weights, device=offload, operations=network_operations(ops.manual_cast)
    )
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    patcher = model_patcher.CoreModelPatcher(network, load_device=device, offload_device=offload)
    log.info("Loaded %s: motion for %d frames", checkpoint.name, component.config.max_frames)
    return Motion(patcher, checkpoint.without_weights())


def apply_motion(model: object, motion: Motion, frames: int, own_schedule: bool) -> object:
    """The image MODEL as a video model: batches of latents are the frames of videos.

    Args:
        model: Stable Diffusion 1.5, with any LoRA, hooks or patches before or after.
        motion: what is added.
        frames: of a video; 0: all latents of a batch are one video.
        own_schedule: sample on the noise schedule of the motion's training instead of the image model's.

    Raises:
        ValueError: another kind of image model, or more frames than the motion modules know.
    """
    blocks = _blocks(model, motion)
    _check_frames(frames, motion.config, windows=False)
    patched = model.clone()  # type: ignore[attr-defined]
    patched.set_additional_models(_KEY, [motion.patcher])
    kinds = patcher_extension.WrappersMP
    for kind, wrapper in (
        (kinds.APPLY_MODEL, _FindFrames(frames, motion.config)),
        (kinds.DIFFUSION_MODEL, _Move(blocks, motion.config.joint_norms)),
    ):
        patched.remove_wrappers_with_key(kind, _KEY)
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    if own_schedule:
        patched.add_object_patch("model_sampling", _sampling(model, motion.checkpoint.schedule))
    return patched


def _sampling(model: object, schedule: NoiseSchedule) -> object:
    class MotionSampling(model_sampling.ModelSamplingDiscrete, model_sampling.EPS):
        """Noise predicted on the schedule of the motion's training."""

    sampling = MotionSampling(model.model.model_config)  # type: ignore[attr-defined]
    sampling._register_schedule(
        beta_schedule=BETA_SCHEDULES[schedule.spacing],
        timesteps=schedule.steps,
        linear_start=schedule.linear_start,
        linear_end=schedule.linear_end,
    )
    return sampling


def _blocks(model: object, motion: Motion) -> dict[tuple[str, int], bool]:
    """The UNet's blocks that have a residual block, and whether a transformer follows it.

    Raises:
        ValueError: it is not the UNet that the motion modules were made for.
    """
    name, config = motion.checkpoint.name, motion.config
    inner = getattr(model, "model", None)
    kind, unet = getattr(inner, "model_config", None), getattr(inner, "diffusion_model", None)
    if not (isinstance(unet, openaimodel.UNetModel) and isinstance(kind, supported_models.SD15)):
        found = type(kind or inner or model).__name__
        raise ValueError(f"{name} moves Stable Diffusion 1.5, found {found}: load a checkpoint based on SD 1.5.")
    blocks = {("input", index): block for index, block in enumerate(unet.input_blocks)}
    blocks |= {("middle", 0): unet.middle_block}
    blocks |= {("output", index): block for index, block in enumerate(unet.output_blocks)}
    residual = {
        key: [layer for layer in block if isinstance(layer, openaimodel.ResBlock)] for key, block in blocks.items()
    }
    places = {key: _has_transformer(blocks[key]) for key, layers in residual.items() if layers}
    widths = {key: residual[key][0].out_channels for key in places}
    down = [widths[key] for key in widths if key[0] == "input"]
    up = [widths[key] for key in widths if key[0] == "output"]
    per_level = config.blocks_per_level
    wanted_down = [width for width in config.widths for _ in range(per_level)]
    wanted_up = [width for width in config.widths[::-1] for _ in range(per_level + 1)]
    if (down, up) != (wanted_down, wanted_up):
        raise ValueError(
            f"{name} moves a UNet with blocks of widths {wanted_down} on the way down, found {down}: the motion "
            "modules were made for another image model."
        )
    context = getattr(kind, "unet_config", {}).get("context_dim")
    if config.tokens and context not in (None, config.tokens.width):
        raise ValueError(
            f"{name} makes text tokens of width {config.tokens.width}, the image model reads {context}: the motion "
            "modules were made for another image model."
        )
    return places


def _has_transformer(block: Sequence[nn.Module]) -> bool:
    return any(isinstance(layer, openaimodel.SpatialTransformer) for layer in block)


def _check_frames(frames: int, config: MotionConfig, windows: bool) -> None:
    if frames <= config.max_frames:
        return
    advice = (
        f"set the windows' context_length to {config.max_frames - 1} or less, or switch their causal_window_fix off."
        if windows
        else f"make at most {config.max_frames}, or add Context Windows (Manual) with dim 0 and a context_length of "
        f"{config.max_frames - 1} or less."
    )
    raise ValueError(f"These motion modules know {config.max_frames} frames, found {frames}: {advice}")


@dataclass(frozen=True)
class _FindFrames:
    """APPLY_MODEL: how many frames the videos of a call have, as a keyword; compiled models watch keywords alone."""

    frames: int
    config: MotionConfig

    def __call__(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: object = None,
        transformer_options: Mapping[str, object] | None = None,
        **conditions: object,
    ) -> Tensor:
        options = dict(transformer_options or {})
        branches = options.get("cond_or_uncond") or [0]
        assert isinstance(branches, list)
        frames = self._of(len(x) // len(branches), options.get("context_window"))
        # The model that runs now, which on several devices is not the one that was patched.
        network = executor.class_obj.current_patcher.get_additional_models_with_key(_KEY)[0].model  # type: ignore[attr-defined]
        options[_NETWORK] = network
        return executor(x, t, c_concat, c_crossattn, control, options, **{**conditions, _FRAMES: frames})

    def _of(self, rows: int, window: object) -> int:
        """Frames of each video among the rows of a branch."""
        if window is not None:
            total = getattr(window, "total_frames", rows)
            if self.frames and total > self.frames:
                raise ValueError(
                    f"Context windows cut a batch of {total} latents without regard to its videos of {self.frames} "
                    "frames: make one video at a time (frames 0)."
                )
            _check_frames(rows, self.config, windows=True)
            return rows
        frames = self.frames or rows
        if rows % frames:
            raise ValueError(
                f"The batch has {rows} latents, which is no multiple of {frames} frames: make the latent's batch size "
                "a multiple of HARIVO Apply's frames, or set these to 0."
            )
        _check_frames(frames, self.config, windows=False)
        return frames


@dataclass(frozen=True)
class _Move:
    """DIFFUSION_MODEL: the three parts around and in the UNet."""

    blocks: Mapping[tuple[str, int], bool]
    joint_norms: bool
    _said: set[int] = field(default_factory=set)
    """Lengths of texts that were warned of: once, not at every step."""

    def __call__(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: object = None,
        transformer_options: Mapping[str, object] | None = None,
        **conditions: object,
    ) -> Tensor:
        options = dict(transformer_options or {})
        frames, network = conditions.pop(_FRAMES), options.pop(_NETWORK)
        assert isinstance(frames, int) and isinstance(network, MotionNetwork)
        if network.mapping is not None:
            x = _mapped(network, x, frames)
        if network.tokens is not None and context is not None:
            context = self._with_tokens(network, context, frames)
        patches = dict(options.get("patches") or {})  # type: ignore[call-overload]
        before = list(patches.get("forward_timestep_embed_patch", []))
        kinds = (openaimodel.ResBlock, openaimodel.SpatialTransformer)
        patches["forward_timestep_embed_patch"] = [(kinds, self._handler(network, frames, before)), *before]
        with _joint_norms(executor.class_obj, frames) if self.joint_norms else nullcontext():  # type: ignore[attr-defined]
            return executor(x, timesteps, context, y, control, {**options, "patches": patches}, **conditions)

    def _with_tokens(self, network: MotionNetwork, context: Tensor, frames: int) -> Tensor:
        """The text of every row (R, N, D) with the tokens of its frame behind it."""
        assert network.tokens is not None and network.config.tokens is not None
        needed, found = network.config.tokens.text_tokens, context.shape[1]
        if found < needed and found not in self._said:
            self._said.add(found)
            log.warning("The text has %d tokens, frame tokens are made of %d: none were added.", found, needed)
        return network.tokens.append(context, frames).to(context.dtype)

    def _handler(
        self, network: MotionNetwork, frames: int, before: list[tuple[type, Callable]]
    ) -> Callable[..., Tensor]:
        def run(layer: nn.Module, x: Tensor, emb: Tensor, context: Tensor, options: dict, *rest: object) -> Tensor:
            """The layer, by another pack's handler where there is one, and the motion module that stands behind it."""
            transformer = isinstance(layer, openaimodel.SpatialTransformer)
            other = next((handler for kind, handler in before if isinstance(layer, kind)), None)
            if other is not None:
                x = other(layer, x, emb, context, options, *rest)
            elif transformer:
                x = _transformed(layer, x, context, options)
                if "transformer_index" in options:
                    options["transformer_index"] += 1
            elif self.joint_norms:
                x = layer(x, emb)
            else:
                x = map_images(layer, layer, x, emb, residual_values(x))
            place, index = options["block"]
            return network.move(x, place, index, frames) if self.blocks[place, index] == transformer else x

        return run


def _transformed(layer: nn.Module, x: Tensor, context: Tensor | None, options: Mapping[str, object]) -> Tensor:
    """The image model's transformer on rows, some at a time where nothing in it looks at all of them together."""
    patches = options.get("patches")
    assert isinstance(patches, Mapping)
    watched = options.get("patches_replace") or "optimized_attention_override" in options
    if context is None or watched or any(kind not in _BETWEEN_LAYERS for kind in patches):
        return layer(x, context, options)  # type: ignore[no-any-return]
    return map_images(layer, lambda part, text: layer(part, text, options), x, context, transformer_values(x))


def _mapped(network: MotionNetwork, x: Tensor, frames: int) -> Tensor:
    """The noisy latents (R, C, H, W) through the mapping network; what inpainting models have beside them stays."""
    assert network.mapping is not None
    channels = network.config.mapping.channels  # type: ignore[union-attr]
    latents = x[:, :channels].unflatten(0, (-1, frames)).transpose(1, 2)
    mapped = network.mapping(latents).transpose(1, 2).flatten(0, 1).to(x.dtype)
    return torch.cat([mapped, x[:, channels:]], dim=1)


@contextmanager
def _joint_norms(unet: nn.Module, frames: int) -> Iterator[None]:
    """Norms of residual blocks and of the output take statistics over all frames of a video, for one call."""

    def joined(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].unflatten(0, (-1, frames)).transpose(1, 2),)

    def parted(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.transpose(1, 2).flatten(0, 1)

    norms = [unet.out[0]]
    for layer in unet.modules():
        if isinstance(layer, openaimodel.ResBlock):
            norms += [layer.in_layers[0], layer.out_layers[0]]
    hooks = [norm.register_forward_pre_hook(joined) for norm in norms]
    hooks += [norm.register_forward_hook(parted) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
