"""Native MODEL objects from checkpoints. No family is known here by name: networks say what they need."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ...kernels.layers.chunking import low_memory
from ..checkpoint import MODEL, Checkpoint, ReadOptions, read
from ..keymap import check_tensors
from .compat import (
    conds,
    model_management,
    model_patcher,
    patcher_extension,
    supported_models_base,
    utils,
)
from .cues import CUES, Cue
from .described import DescribedModel, prediction_of, sampling_settings
from .image_model import ImageModelConfig
from .latent import VideoLatentFormat
from .operations import network_operations

log = logging.getLogger(__name__)

# Attributes of a ComfyUI model's memory estimate: bytes = positions * bytes per value * 0.01 MiB * factor.
_FACTOR_UNIT = 0.01 * 1024 * 1024


@cache
def bridged(network: type[nn.Module]) -> type[nn.Module]:
    """The network with ComfyUI's calling convention: its operations, its wrappers, its keyword arguments."""
    accepted = set(inspect.signature(network.forward).parameters) - {"self", "x", "timesteps", "context"}

    class Bridged(network):  # type: ignore[misc, valid-type]
        def __init__(
            self, config: object, *, dtype: torch.dtype, device: torch.device | str | None, operations: type
        ) -> None:
            super().__init__(config, dtype=dtype, device=device, operations=network_operations(operations))
            self.dtype = dtype
            self.control_was_given = False
            # A variance behind the prediction is seen by wrappers alone.
            self.predicted = getattr(config, "predicted_channels", None)

        def forward(
            self,
            x: Tensor,
            timesteps: Tensor,
            context: Tensor | None = None,
            control: object = None,
            transformer_options: Mapping[str, object] | None = None,
            **conditions: object,
        ) -> Tensor:
            """x (B, C, T, H, W), timesteps (B,) -> prediction like the latent; calls DIFFUSION_MODEL wrappers."""
            options = transformer_options or {}
            if control is not None and "control" not in accepted and not self.control_was_given:
                self.control_was_given = True  # said once, not at every step
                log.warning("%s takes no ControlNet: it has no effect.", network.__name__)
            kind = patcher_extension.WrappersMP.DIFFUSION_MODEL
            wrappers = patcher_extension.get_all_wrappers(kind, options)
            executor = patcher_extension.WrapperExecutor.new_class_executor(self._network_forward, self, wrappers)
            prediction = executor.execute(x, timesteps, context, control, options, **conditions)
            return prediction if self.predicted is None else prediction[:, : self.predicted]

        def _network_forward(
            self,
            x: Tensor,
            timesteps: Tensor,
            context: Tensor | None,
            control: Mapping[str, list[Tensor | None]] | None,
            options: object,
            **given: object,
        ) -> Tensor:
            kept = {name: value for name, value in given.items() if name in accepted}
            if "control" in accepted and control is not None:
                # Those of the skips, first to last, and of the middle.
                kept["control"] = [*control["output"], *control["middle"]]
            with low_memory(is_memory_low()):
                return super().forward(x, timesteps, context, **kept)

    Bridged.__name__ = Bridged.__qualname__ = network.__name__
    return Bridged


class VideoModel(DescribedModel):
    """A diffusion model on 5D latents."""

    def __init__(self, config: "VideoModelConfig", device: torch.device | None = None) -> None:
        prediction = prediction_of(config.checkpoint.schedule)
        super().__init__(config, prediction, device=device, unet_model=bridged(config.network))
        self.checkpoint = config.checkpoint

    @property
    def network_config(self) -> object:
        """Configuration of the network."""
        return self.model_config.unet_config["config"]

    def concat_cond(self, **kwargs: object) -> Tensor | None:
        """Channels behind the noise: `concat_latent_image` and `concat_mask` of the conditioning, as the network needs.

        Raises:
            ValueError: the video that the network is conditioned on is missing or of another size.
        """
        noise = kwargs["noise"]
        colours = self.latent_format.latent_channels
        extra = self.network_config.in_channels - colours
        if extra == 0:
            return None
        given = [self._given_video(kwargs.get("concat_latent_image"), noise)] if extra >= colours else []
        return torch.cat([*given, *([self._mask(kwargs.get("concat_mask"), noise)] if extra % colours else [])], dim=1)

    def _given_video(self, given: Tensor | None, noise: Tensor) -> Tensor:
        """What a network is conditioned on, (B, C, T, H, W)."""
        if given is None:
            raise ValueError(
                f"{self.checkpoint.name} works from a given video, and found none in the conditioning: use the node "
                "made for it, Show-1 Interpolate or Show-1 Super-Resolution (Weft)."
            )
        if given.shape[1:] != noise.shape[1:] or len(noise) % len(given):
            raise ValueError(
                f"The given video has shape {tuple(given.shape)}, the latent {tuple(noise.shape)}: make them equal."
            )
        return self.process_latent_in(given).to(noise).repeat(len(noise) // len(given), 1, 1, 1, 1)

    def _mask(self, mask: Tensor | None, noise: Tensor) -> Tensor:
        """Which of the frames or latents are given, (B, 1, T, H, W); none without a mask."""
        if mask is None:
            return torch.zeros_like(noise[:, :1])
        mask = mask.reshape(-1, 1, *mask.shape[-3:])
        if mask.shape[2] not in (1, noise.shape[2]):
            raise ValueError(
                f"The mask of given latents has {mask.shape[2]} frames, the latent has {noise.shape[2]}: "
                "make them equal, or give one frame for all."
            )
        mask = mask.expand(-1, -1, noise.shape[2], -1, -1)
        mask = utils.common_upscale(mask[:, 0], noise.shape[-1], noise.shape[-2], "nearest-exact", "disabled")
        return utils.resize_to_batch_size(mask[:, None], noise.shape[0]).to(noise)

    def extra_conds(self, **kwargs: object) -> dict[str, object]:
        """Named inputs of the network from the conditioning; refuses latents and text that the network cannot take.

        Raises:
            ValueError: an image latent, or text of another width.
        """
        self._check_latent(kwargs["noise"])
        out = super().extra_conds(**kwargs)
        width = getattr(self.network_config, "text_width", getattr(self.network_config, "context_width", None))
        text = kwargs.get("cross_attn")
        if width is None:
            out.pop("c_crossattn", None)
        elif text is not None:
            self.check_text(text, width)
            self._warn_of_lost_text(kwargs.get("attention_mask"))
            # The same at every step: once per run, and of one length whatever the prompt's. Hooks change weights later.
            if hasattr(self.diffusion_model, "encode_text") and not kwargs.get("hooks"):
                encoded = self.diffusion_model.encode_text(text.to(kwargs["device"], self.get_dtype_inference()))
                out.update({name: Cue(tensor) for name, tensor in encoded.items()})
                out.pop("c_crossattn", None)
        cues = kwargs.get(CUES, {})
        missing = [name for name in getattr(self.diffusion_model, "video_cues", ()) if name not in cues]
        if missing and kwargs["noise"].shape[2] > 1:
            raise ValueError(
                f"{self.checkpoint.name} makes videos around a picture, and was given none: sample the MODEL of HiGen "
                "Temporal Reasoning (Weft); without it this model makes single frames."
            )
        out.update(cues)
        level = kwargs.get("noise_level")
        if level is not None:
            out["noise_level"] = conds.CONDRegular(self._checked_level(torch.as_tensor(level).reshape(-1)))
        return out

    def _warn_of_lost_text(self, mask: Tensor | None) -> None:
        """`mask`: which tokens are words and not padding, (B, N), where the text encoder says so."""
        longest = getattr(self.diffusion_model, "text_tokens", None)
        if longest is not None and mask is not None and mask.shape[-1] > longest and mask[..., longest:].any():
            log.warning("The prompt has more than %d tokens, which is all this model reads: its end is lost", longest)

    def _checked_level(self, level: Tensor) -> Tensor:
        levels = getattr(self.network_config, "noise_levels", 0)
        if not levels:
            raise ValueError(f"{self.checkpoint.name} knows no noise level of given latents: leave it out.")
        if level.min() < 0 or level.max() >= levels:
            raise ValueError(
                f"The noise level of given latents is {level.tolist()}, {self.checkpoint.name} takes 0 to {levels - 1}."
            )
        return level

    def _check_latent(self, noise: Tensor) -> None:
        if noise.ndim == 5 and noise.shape[2] >= self.latent_format.fewest:
            channels = self.latent_format.latent_channels
            if noise.shape[1] == channels:
                return
            raise ValueError(
                f"The latent has {noise.shape[1]} channels, {self.checkpoint.name} takes {channels}: it was made for "
                "another model, use Empty Video Latent (Weft), or encode with the VAE that belongs to this one."
            )
        images = f"{noise.shape[0]} latents of one frame"
        found = images if noise.ndim == 5 else f"a latent of shape {tuple(noise.shape)}"
        raise ValueError(
            f"{self.checkpoint.name} makes videos and needs a latent (batch, channels, frames, height, width) of at "
            f"least two frames, found {found}: use Empty Video Latent (Weft) instead of an image latent."
        )

    def resize_cond_for_context_window(
        self,
        cond_key: str,
        cond_value: object,
        window: object,
        x_in: Tensor,
        device: torch.device,
        retain_index_list: list[int] | None = None,
    ) -> object:
        """Cues with a value per frame or step are cut to the window."""
        if isinstance(cond_value, Cue):
            return cond_value.in_window(window)
        return super().resize_cond_for_context_window(
            cond_key, cond_value, window, x_in, device, retain_index_list or []
        )


class VideoModelConfig(supported_models_base.BASE):
    """ComfyUI's view of a checkpoint's denoiser."""

    unet_extra_config: dict[str, object] = {}
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def __init__(self, checkpoint: Checkpoint) -> None:
        component = checkpoint.component(MODEL)
        assert component.network is not None
        fewest = getattr(component.network, "fewest_frames", 2)
        self.latent_format = lambda: VideoLatentFormat(checkpoint.latent, fewest)
        super().__init__({"config": component.config})
        self.checkpoint, self.network = checkpoint.without_weights(), component.network
        self.sampling_settings = sampling_settings(checkpoint.schedule)
        values = component.network.activation_values * component.config.model_channels  # type: ignore[attr-defined]
        self.memory_usage_factor = values / _FACTOR_UNIT

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> VideoModel:
        """The model without its weights."""
        return VideoModel(self, device)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded: what the file leaves open, and the dtype of the weights (None: ComfyUI's choice)."""

    read: ReadOptions = ReadOptions()
    dtype: torch.dtype | None = None


def load_model(path: str, options: LoadOptions | None = None, disable_dynamic: bool = False) -> object:
    """Read a file and make its MODEL (a ModelPatcher); the signature is that of ComfyUI's reloading functions.

    Raises:
        CheckpointError: the file has no denoiser or does not fit.
    """
    options = options or LoadOptions()
    patcher = make_model(read(path, options.read, [MODEL]), options.dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (path, options))
    return patcher


def make_model(checkpoint: Checkpoint, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> object:
    """MODEL of a checkpoint that was read; its tensors are used up.

    Raises:
        CheckpointError: the network is ComfyUI's, and the file does not describe it or its tensors do not fit.
    """
    component = checkpoint.component(MODEL)
    tensors = dict(component.tensors)
    # A network that is not ours is ComfyUI's, in the one layout that files may describe.
    config = ImageModelConfig(checkpoint) if component.network is None else VideoModelConfig(checkpoint)
    device = model_management.get_torch_device()
    supported = config.supported_inference_dtypes
    stored = dtype or utils.weight_dtype(tensors)
    parameters = utils.calculate_parameters(tensors)
    weights = dtype or model_management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=stored
    )
    config.set_inference_dtype(weights, model_management.unet_manual_cast(weights, device, supported))
    model = config.get_model(tensors)
    if component.network is None:
        check_tensors(model.diffusion_model, tensors, checkpoint.name)
    offload = model_management.unet_offload_device()
    kind = model_patcher.ModelPatcher if disable_dynamic else model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    if not model_management.is_device_cpu(offload):
        model.to(offload)
    model.load_model_weights(tensors, "", assign=patcher.is_dynamic())
    log.info(
        "Loaded %s: %s, %.0f M parameters", checkpoint.name, type(model.diffusion_model).__name__, parameters / 1e6
    )
    return patcher


def is_memory_low() -> bool:
    """Whether ComfyUI was started for a GPU with little memory (--lowvram, --novram)."""
    states = model_management.VRAMState
    return model_management.vram_state in (states.LOW_VRAM, states.NO_VRAM)


def checkpoint_of(model: object) -> Checkpoint:
    """What a MODEL was made of.

    Raises:
        ValueError: it was not loaded by this pack.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, VideoModel):
        raise ValueError(
            f"Found a {type(inner).__name__}, expected a model loaded by one of this pack's loaders: for other models "
            "use the core's samplers and schedulers."
        )
    return inner.checkpoint


def threshold_of(model: object) -> float:
    """To what predicted clean frames of a MODEL are thresholded while they are sampled as released; 0: not at all."""
    return getattr(model.model.network_config, "threshold", 0.0)  # type: ignore[attr-defined]
