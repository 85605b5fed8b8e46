"""VersVideo: its multi-excitation convolution in one multiplier, next to the paper's paths one by one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..kernels.layers.excitation import MultiExcitation
from ..model_loaders.keymap import strip_prefix
from ..model_loaders.versvideo import UNET_KEYS
from .case import Case
from .peers import versvideo as peers

# Channels in and out: as many in most residual blocks, more in those that read a skip.
WIDTHS = {"tiny": (32, 32), "quarter": (64, 64), "official": (128, 128)}
SKIP_WIDTHS = {size: (2 * width, width) for size, (width, _) in WIDTHS.items()}
# Latents of VersVideo-L: frames, height, width.
SHAPES = {"tiny": (4, 16, 16), "quarter": (16, 32, 32), "official": (16, 32, 32)}
_PLACE = "skeleton.down.0.residual.conv1."


class Excitation(MultiExcitation):
    """Ours for a video of the peer's shape in the memory that ours has between layers."""

    def forward(self, z: Tensor) -> Tensor:  # type: ignore[override]
        """Input (B, C, T, H, W) -> (B, C', T, H, W)."""
        out = super().forward(z.transpose(1, 2).flatten(0, 1), z.shape[2])
        return out.unflatten(0, (-1, z.shape[2])).transpose(1, 2)


def excitation_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one multi-excitation convolution by the names of files -> ours."""
    return strip_prefix(UNET_KEYS({_PLACE + name: tensor for name, tensor in tensors.items()}), _PLACE)


def _case(name: str, widths: Mapping[str, tuple[int, int]]) -> Case:
    def inputs(size: str, batch: int) -> tuple[Tensor, ...]:
        # Channels last in memory, as between layers; the peer's layers take it as it is.
        frames, height, width = SHAPES[size]
        return (torch.randn(batch, frames, height, width, widths[size][0]).permute(0, 4, 1, 2, 3),)

    return Case(
        name=name,
        ours=lambda size: Excitation(*widths[size]),
        peers={
            "paths": lambda size: peers.MultiExcitation(*widths[size]),
        },
        keys=excitation_tensors,
        inputs=inputs,
        width=lambda size: widths[size][1],
        note="paths: the 2D+1D convolution and the three excitations as printed, of torch.nn layers on the same memory",
    )


CASES = (_case("versvideo-mec", WIDTHS), _case("versvideo-mec-skip", SKIP_WIDTHS))
