"""ComfyUI's operations (offloading, casting, low precision, selected attention) in the form that networks take."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compat import attention, ops


@cache
def network_operations(base: type) -> type:
    """A class with the members of `TorchOperations`, from one of ComfyUI's classes of operations."""

    class ConvTranspose3d(nn.ConvTranspose3d, ops.CastWeightBiasOp):
        comfy_cast_weights = base.Conv3d.comfy_cast_weights

        def reset_parameters(self) -> None:
            """Weights are loaded, never drawn."""
            return None

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            """x (B, C, T, H, W); the weight comes to the device and dtype of x."""
            with _cast(self, x) as (weight, bias):
                return F.conv_transpose3d(x, weight, bias, self.stride, self.padding)

    class Operations(base):  # type: ignore[misc, valid-type]
        @staticmethod
        def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            """Attention by the backend that ComfyUI selected, shapes as in `TorchOperations`."""
            return attention.optimized_attention(query, key, value, heads)

        @staticmethod
        def weights(module: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
            """Weight and bias on the device and in the dtype of `like`, with patches applied, while it is open."""
            return _cast(module, like)

    Operations.ConvTranspose3d = ConvTranspose3d
    return Operations


@contextmanager
def _cast(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Given back after use: otherwise the memory stays pinned, and a streamed weight may be overwritten too early."""
    weight, bias, stream = ops.cast_bias_weight(module, like, offloadable=True)
    try:
        yield weight, bias
    finally:
        ops.uncast_bias_weight(module, weight, bias, stream)


def torch_dtype_of(name: str) -> torch.dtype | None:
    """The dtype of a loader's widget; None for "default"."""
    return {
        "default": None,
        "fp32": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "fp8_e4m3fn": torch.float8_e4m3fn,
    }[name]
