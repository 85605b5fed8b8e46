"""Stable Diffusion's U-Net as diffusers has it, for training; from files and into them.

Shapes: B clips, Z latent channels, T, H, W latents, N tokens, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..model_loaders.checkpoint import Component
from ..model_loaders.errors import CheckpointError
from ..model_loaders.image_unet import ImageUNetConfig, diffusers_to_comfy
from ..model_loaders.keymap import check_tensors
from .moving_unet import UNet2DConditionModel


class ImageUNet(nn.Module):
    """diffusers' U-Net on every frame of a clip by itself."""

    def __init__(self, config: ImageUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = build_unet(config)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """x (B, Z, T, H, W), timesteps (B,), context (B, N, D) -> the predicted noise, like x."""
        frames = x.shape[2]
        rows = x.transpose(1, 2).flatten(0, 1)
        times, texts = timesteps.repeat_interleave(frames), context.repeat_interleave(frames, dim=0)
        predicted: Tensor = self.unet(rows, times, texts).sample
        return predicted.unflatten(0, (-1, frames)).transpose(1, 2)


def build_unet(config: ImageUNetConfig) -> nn.Module:
    """The `UNet2DConditionModel` of a configuration, as diffusers draws it."""
    from diffusers import UNet2DConditionModel

    attends = config.attends
    network = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.num_res_blocks,
        cross_attention_dim=config.context_width,
        # diffusers calls the number of heads so.
        attention_head_dim=config.heads,
        norm_num_groups=config.norm_groups,
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]),
    )
    return cast("nn.Module", network)


def config_of(unet: UNet2DConditionModel, source: str) -> ImageUNetConfig:
    """The sizes of a `UNet2DConditionModel`; CheckpointError, which names `source`, for other layouts."""
    said = unet.config
    for name in ("layers_per_block", "attention_head_dim"):
        if not isinstance(said[name], int):
            raise CheckpointError(
                f"{source} has {name} {said[name]}, expected one number for all levels, as in Stable Diffusion 1.5."
            )
    first, *_ = widths = said.block_out_channels
    attends = [kind.startswith("CrossAttn") for kind in said.down_block_types]
    config = ImageUNetConfig(
        in_channels=said.in_channels,
        model_channels=first,
        channel_mult=tuple(width // first for width in widths),
        num_res_blocks=said.layers_per_block,
        attention_factors=tuple(2**level for level, attend in enumerate(attends) if attend),
        context_width=said.cross_attention_dim,
        heads=said.attention_head_dim,
    )
    with torch.device("meta"):
        check_tensors(build_unet(config), unet.state_dict(), source)
    return config


def start_image_unet(network: ImageUNet, text_gain: float) -> None:
    """Every branch begins without effect, as Stable Diffusion's did; text stands inside one and may start strongly."""
    for name, module in network.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        elif name.endswith("attn2.to_out.0"):
            module.get_parameter("weight").data.mul_(text_gain)


def component_of(network: ImageUNet) -> Component:
    """The network as files hold it, under ComfyUI's names."""
    return Component(None, network.config, diffusers_to_comfy(network.config)(network.unet.state_dict()))


def network_of(component: Component, source: str) -> nn.Module:
    """The network of a file's component, in diffusers where it is an image model's.

    Raises CheckpointError, which names `source`, when tensors do not fit.
    """
    if not isinstance(component.config, ImageUNetConfig):
        return component.build()
    network = ImageUNet(component.config)
    keys = diffusers_to_comfy(component.config)
    names = {keys.rename(name): name for name in network.unet.state_dict()}
    tensors = {names.get(name, name): tensor for name, tensor in component.tensors.items()}
    check_tensors(network.unet, tensors, source)
    network.unet.load_state_dict(tensors)
    return network
