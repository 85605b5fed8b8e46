"""ControlNet for an image model: a copy of its encoder that also sees a picture (arXiv 2302.05543, Section 3).

Shapes: B clips, Z latent channels, T frames, H, W latents, N tokens, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..model_loaders.files import save_tensors
from ..model_loaders.image_unet import ImageUNetConfig, control_to_comfy
from .image_unet import build_unet, config_of
from .moving_unet import UNet2DConditionModel

CONTROL = "control_net"
"""Role of the network in a run."""
HINT_FACTOR = 8
"""Pixels of a hint for each latent, in height and width: what ComfyUI scales hints to."""


class ControlNet(nn.Module):
    """diffusers' ControlNet of an image UNet's sizes; from a UNet it starts as its encoder, without effect."""

    def __init__(self, config: ImageUNetConfig, unet: UNet2DConditionModel | None = None) -> None:
        super().__init__()
        from diffusers import ControlNetModel

        self.config, given = config, unet is not None
        if unet is None:
            with torch.device("meta"):
                unet = build_unet(config)
        self.network = ControlNetModel.from_unet(unet, load_weights_from_unet=given)

    @classmethod
    def of(cls, unet: UNet2DConditionModel, source: str) -> ControlNet:
        """One that a UNet is not yet changed by; CheckpointError, which names `source`, for other layouts."""
        return cls(config_of(unet, source), unet)

    def forward(
        self, unet: UNet2DConditionModel, x: Tensor, timesteps: Tensor, context: Tensor, hints: Tensor
    ) -> Tensor:
        """Noise that the UNet predicts under control of hints, like x.

        Args:
            unet: the frozen image model's.
            x, timesteps, context: (B, Z, T, H, W), (B,) and (B, N, D).
            hints: pictures (B, T, 3, 8 H, 8 W), 0..1.
        """
        frames = x.shape[2]
        rows = x.transpose(1, 2).flatten(0, 1)
        times, texts = timesteps.repeat_interleave(frames), context.repeat_interleave(frames, dim=0)
        down, middle = self.network(rows, times, texts, hints.flatten(0, 1), return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted: Tensor = unet(rows, times, texts, **added).sample
        return predicted.unflatten(0, (-1, frames)).transpose(1, 2)


def save_control_net(path: Path, network: ControlNet, **metadata: object) -> None:
    """Write a file for ComfyUI's Load ControlNet Model.

    Of a plain ControlNet ComfyUI guesses the heads: 64 channels for each, but for the sizes that it knows. Of one that
    is marked as a Control-LoRA, here with whole weights, it takes them and all sizes from the MODEL that is sampled.
    """
    tensors = control_to_comfy(network.config)(network.network.state_dict()) | {"lora_controlnet": torch.tensor([])}
    save_tensors(path, {name: tensor.half() for name, tensor in tensors.items()}, metadata)
