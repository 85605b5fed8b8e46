"""Stable Diffusion 1's U-Net at any size: its sizes, and its tensors' names in diffusers and in ComfyUI.

The network itself is ComfyUI's (`openaimodel.UNetModel`) and, in the trainer, diffusers' (`UNet2DConditionModel`).
"""

from dataclasses import dataclass

from .keymap import KeyMap
from .unet_layout import DIFFUSERS_RESIDUAL, diffusers_places

NORM_GROUPS = 32


@dataclass(frozen=True)
class ImageUNetConfig:
    """Sizes of the U-Net; the defaults are those of Stable Diffusion 1.5.

    Attributes:
        in_channels: of the latents; as many are predicted.
        model_channels: base width, a multiple of the groups of its norms.
        channel_mult: width of each level in base widths.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors of the levels with transformers; the middle has one too.
        context_width: width of the text's tokens.
        heads: of every attention.
    """

    in_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_factors: tuple[int, ...] = (1, 2, 4)
    context_width: int = 768
    heads: int = 8

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_channels

    @property
    def norm_groups(self) -> int:
        """Groups of every norm."""
        return NORM_GROUPS

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every level."""
        return tuple(self.model_channels * factor for factor in self.channel_mult)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each level has transformers."""
        return tuple(2**level in self.attention_factors for level in range(len(self.channel_mult)))


def diffusers_to_comfy(config: ImageUNetConfig) -> KeyMap:
    """Names of diffusers' `UNet2DConditionModel` to those of the released files, which ComfyUI keeps."""
    upwards = config.attends[::-1]
    return KeyMap(
        rules=(
            *diffusers_places(
                config.num_res_blocks,
                {"resnets": "0.", "attentions": "1."},
                "0.op.",
                lambda level: 2 if upwards[level] else 1,
            ),
            (r"^mid_block\.resnets\.0\.", "middle_block.0."),
            (r"^mid_block\.attentions\.0\.", "middle_block.1."),
            (r"^mid_block\.resnets\.1\.", "middle_block.2."),
            *DIFFUSERS_RESIDUAL,
        )
    )


def control_to_comfy(config: ImageUNetConfig) -> KeyMap:
    """Names of diffusers' `ControlNetModel` to those of the released ControlNets, likewise."""
    return KeyMap(
        rules=(
            (r"^controlnet_cond_embedding\.conv_in\.", "input_hint_block.0."),
            (
                r"^controlnet_cond_embedding\.blocks\.(\d+)\.",
                lambda match: f"input_hint_block.{2 + 2 * int(match[1])}.",
            ),
            (r"^controlnet_cond_embedding\.conv_out\.", "input_hint_block.14."),
            (r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0."),
            (r"^controlnet_mid_block\.", "middle_block_out.0."),
            *diffusers_to_comfy(config).rules,
        )
    )
