"""HiGen with one frame and with many, and ModelScopeT2V, which has its layout."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from ..kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig
from ..model_loaders.higen import unet_component
from .case import Case, Inputs
from .peers.modelscope import UNet

# A quarter of the parameters and of the work: half the width, heads of half the width, on the official latent.
CONFIGS = {
    "tiny": SpaceTimeUNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,), head_width=8, context_width=24
    ),
    "quarter": SpaceTimeUNetConfig(model_channels=160, head_width=32),
    "official": SpaceTimeUNetConfig(),
}
# Latents: frames, height, width.
HIGEN_SHAPE = {"tiny": (8, 8, 16), "quarter": (32, 32, 56), "official": (32, 32, 56)}
MODELSCOPE_SHAPE = {"tiny": (8, 8, 8), "quarter": (16, 32, 32), "official": (16, 32, 32)}
HIGEN_TOKENS, MODELSCOPE_TOKENS = 16, 77


class SteeredUNet(HiGenUNet):
    """HiGen, called like the peer: the text is resampled, which happens once per run, and cues are at rest."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, C, T, H, W), timesteps (B,), resampled text (B, N, D) -> shape of x."""
        return super().forward(x, timesteps, text_tokens=context)


def _higen(size: str) -> SteeredUNet:
    return SteeredUNet(HiGenUNetConfig(**asdict(CONFIGS[size])))


def _modelscope_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(unet_component(tensors).tensors)


def _higen_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The peer's weights; those that only HiGen has are zero, so that both compute the same."""
    component = unet_component(tensors)
    shared = asdict(component.config)  # type: ignore[call-overload]
    first = next(iter(tensors.values()))
    with torch.device("meta"):
        whole = HiGenUNet(HiGenUNetConfig(**shared)).state_dict()
    own = {name: torch.zeros(tensor.shape, dtype=first.dtype, device=first.device) for name, tensor in whole.items()}
    return {**own, **component.tensors}


def _inputs(shapes: Mapping[str, tuple[int, int, int]], tokens: int, frames: int | None = None) -> Inputs:
    def make(size: str, batch: int) -> tuple[Tensor, ...]:
        config, (length, height, width) = CONFIGS[size], shapes[size]
        x = torch.randn(batch, config.in_channels, frames or length, height, width)
        return x, torch.linspace(1, 981, batch).round(), torch.randn(batch, tokens, config.context_width)

    return make


_NOTE = "diffusers: UNet3DConditionModel, which computes the same"
_PICTURE_NOTE = (
    "one frame: diffusers' UNet3DConditionModel with temporal residuals times zero, as HiGen's release; ours leaves "
    "these layers out"
)
CASES = (
    Case(
        name="higen-picture",
        ours=_higen,
        peers={"diffusers": lambda size: UNet(CONFIGS[size], picture=True)},
        keys=_higen_keys,
        inputs=_inputs(HIGEN_SHAPE, HIGEN_TOKENS, frames=1),
        width=lambda size: CONFIGS[size].model_channels,
        note=_PICTURE_NOTE,
    ),
    Case(
        name="higen-video",
        ours=_higen,
        peers={"diffusers": lambda size: UNet(CONFIGS[size])},
        keys=_higen_keys,
        inputs=_inputs(HIGEN_SHAPE, HIGEN_TOKENS),
        width=lambda size: CONFIGS[size].model_channels,
        note=_NOTE,
    ),
    Case(
        name="modelscope",
        ours=lambda size: SpaceTimeUNet(CONFIGS[size]),
        peers={"diffusers": lambda size: UNet(CONFIGS[size])},
        keys=_modelscope_keys,
        inputs=_inputs(MODELSCOPE_SHAPE, MODELSCOPE_TOKENS),
        width=lambda size: CONFIGS[size].model_channels,
        note=_NOTE,
    ),
)
