"""VersVideo's unified ControlNet as a CONTROL_NET of ComfyUI, for the stock Apply ControlNet nodes.

Shapes: B videos (and guidance branches), T frames, h, w latent size.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.networks.unified_control import HINT_FACTOR, UnifiedControlNet
from ..checkpoint import read
from ..unified_control import CONTROL
from .compat import controlnet, model_management, model_patcher, ops, utils
from .operations import network_operations

log = logging.getLogger(__name__)


class UnifiedControl(controlnet.ControlBase):
    """The network with one of its conditions chosen; copies share the weights."""

    def __init__(self, patcher: object, name: str, dtype: torch.dtype, condition: str | None = None) -> None:
        """`dtype`: in which the network computes."""
        super().__init__()
        self.patcher, self.name, self.dtype, self.condition = patcher, name, dtype, condition
        self.model_sampling: object = None

    @property
    def network(self) -> UnifiedControlNet:
        """What is run."""
        return self.patcher.model  # type: ignore[attr-defined,no-any-return]

    def of_condition(self, condition: str) -> "UnifiedControl":
        """A copy that reads maps of a condition.

        Raises:
            ValueError: there is no adapter for it.
        """
        try:
            self.network.check_condition(condition)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        twin = self.copy()
        twin.condition = condition
        return twin

    def copy(self) -> "UnifiedControl":
        """For the Apply nodes, which change a copy."""
        twin = UnifiedControl(self.patcher, self.name, self.dtype, self.condition)
        self.copy_to(twin)
        return twin

    def set_cond_hint(self, cond_hint: Tensor, *args: object, **kwargs: object) -> object:
        """Maps (T, 3, H, W), or one for all frames.

        Raises:
            ValueError: no condition is chosen.
        """
        if self.condition is None:
            names = ", ".join(self.network.config.conditions)
            raise ValueError(
                f"{self.name} reads maps of several conditions ({names}): say which these are by VersVideo Condition "
                "Type (Weft), before Apply ControlNet."
            )
        return super().set_cond_hint(cond_hint, *args, **kwargs)

    def pre_run(self, model: object, percent_to_timestep_function: Callable[[float], float]) -> None:
        """Before sampling."""
        super().pre_run(model, percent_to_timestep_function)
        self.model_sampling = model.model_sampling  # type: ignore[attr-defined]

    def cleanup(self) -> None:
        """After sampling."""
        super().cleanup()
        self.model_sampling = None

    def get_models(self) -> list[object]:
        """What has to be on the device."""
        return [*super().get_models(), self.patcher]

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, Tensor], batched_number: int, transformer_options: dict
    ) -> object:
        """What is added to skips ("output") and middle: of this condition, and of those before it.

        Raises:
            ValueError: another number of maps than one or the frames, or a model that is none of VersVideo's.
        """
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return before
        self._check_latent(x_noisy)
        hints = self._hints(x_noisy, transformer_options).to(x_noisy.device, self.dtype)
        sampling, context = self.model_sampling, cond["c_crossattn"]
        x = sampling.calculate_input(t, x_noisy).to(self.dtype)  # type: ignore[attr-defined]
        times = sampling.timestep(t).float()  # type: ignore[attr-defined]
        assert self.condition is not None
        *skips, middle = self.network(
            x, times, context.to(x), hints.expand(len(x), x.shape[2], -1, -1, -1), self.condition
        )
        return self.control_merge({"output": skips, "middle": [middle]}, before, x_noisy.dtype)

    def _check_latent(self, x: Tensor) -> None:
        channels = self.network.config.unet.in_channels
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(
                f"{self.name} steers VersVideo, whose latents are (batch, {channels}, frames, height, width), found "
                f"{tuple(x.shape)}: sample the VersVideo model that it was trained for."
            )

    def _hints(self, x: Tensor, options: dict) -> Tensor:
        """Maps (1 or T, 3, 8 h, 8 w) of the frames of a call, in 0..1."""
        original, window = self.cond_hint_original, options.get("context_window")
        total = x.shape[2] if window is None else window.total_frames
        if len(original) not in (1, total):
            raise ValueError(
                f"There are {len(original)} {self.condition} maps for a video of {total} frames: give one image for "
                "each frame, or a single one for all."
            )
        height, width = (HINT_FACTOR * side for side in x.shape[-2:])
        if self.cond_hint is None or self.cond_hint.shape[-2:] != (height, width):
            maps = original.expand(-1, 3, -1, -1) if original.shape[1] == 1 else original[:, :3]
            self.cond_hint = utils.common_upscale(maps, width, height, self.upscale_algorithm, "center")
        if window is None or len(self.cond_hint) == 1:
            return self.cond_hint
        anchor = getattr(window, "causal_anchor_index", None)
        shown = [*([anchor] if anchor is not None and anchor >= 0 else []), *window.index_list]
        return self.cond_hint[shown]


def load_unified_control(path: str, dtype: torch.dtype | None = None) -> UnifiedControl:
    """Read a file.

    Raises:
        CheckpointError: it holds no such ControlNet, or does not fit.
    """
    checkpoint = read(path)
    component = checkpoint.component(CONTROL)
    tensors = dict(component.tensors)
    device, offload = model_management.get_torch_device(), model_management.unet_offload_device()
    supported = [torch.float16, torch.bfloat16, torch.float32]
    weights = dtype or model_management.unet_dtype(
        model_params=utils.calculate_parameters(tensors), supported_dtypes=supported, weight_dtype=None
    )
    network = UnifiedControlNet(
        component.config,  # type: ignore[arg-type]
        dtype=weights,
        device=offload,
        operations=network_operations(ops.manual_cast),
    )
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    patcher = model_patcher.CoreModelPatcher(network, load_device=device, offload_device=offload)
    log.info("Loaded %s: ControlNet for %s", checkpoint.name, ", ".join(network.config.conditions))
    computing = model_management.unet_manual_cast(weights, device, supported) or weights
    return UnifiedControl(patcher, checkpoint.name, computing)


def with_condition(control_net: object, condition: str) -> UnifiedControl:
    """A unified ControlNet that reads maps of a condition.

    Raises:
        ValueError: another kind of ControlNet, or a condition without an adapter.
    """
    if not isinstance(control_net, UnifiedControl):
        raise ValueError(
            f"Found a {type(control_net).__name__}, expected VersVideo's ControlNet: other ControlNets are for one "
            "condition, connect them directly."
        )
    return control_net.of_condition(condition)
