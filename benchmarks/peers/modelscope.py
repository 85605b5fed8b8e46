"""The UNet of diffusers that has ModelScopeT2V's layout, called like our networks."""

from diffusers import UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from ...kernels.networks.higen import SpaceTimeUNetConfig


class UNet(UNet3DConditionModel):
    """`UNet3DConditionModel` with the numbers of our configuration.

    `picture`: temporal layers are run and their residual is multiplied by zero, as HiGen's release does at one frame.
    """

    def __init__(self, settings: SpaceTimeUNetConfig, picture: bool = False) -> None:
        attends = [2**level in settings.attention_factors for level in range(len(settings.channel_mult))]
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            block_out_channels=tuple(settings.model_channels * multiplier for multiplier in settings.channel_mult),
            down_block_types=tuple("CrossAttnDownBlock3D" if attention else "DownBlock3D" for attention in attends),
            up_block_types=tuple("CrossAttnUpBlock3D" if attention else "UpBlock3D" for attention in attends[::-1]),
            layers_per_block=settings.num_res_blocks,
            cross_attention_dim=settings.context_width,
            attention_head_dim=settings.head_width,
            norm_num_groups=settings.norm_groups,
        )
        if picture:
            for module in self.modules():
                if isinstance(module, TemporalConvLayer | TransformerTemporalModel):
                    module.register_forward_hook(_without_residual)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """x (B, C, T, H, W), timesteps (B,), context (B, N, D) -> shape of x."""
        found: Tensor = super().forward(x, timesteps, context, return_dict=False)[0]
        return found


def _without_residual(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> object:
    x = inputs[0]
    if isinstance(output, Tensor):
        return x + 0.0 * (output - x)
    return (x + 0.0 * (output[0] - x),)  # type: ignore[index]
