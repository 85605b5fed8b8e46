"""diffusers' UNet with motion modules, called like our networks, and the same with ours in their place.

Shapes: B videos, F frames, C channels, H, W latent size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffusers import UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from ...kernels.layers.chunking import map_images, residual_values, transformer_values
from ...kernels.layers.embeddings import frame_positions
from ...kernels.layers.resnet import Step
from ...kernels.networks.harivo import motion_module


@dataclass(frozen=True)
class ImageSettings:
    """Numbers of the image UNet; the defaults are Stable Diffusion 1.5's."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    context_width: int = 768
    heads: int = 8


class UNet(UNetMotionModel):
    """`UNetMotionModel` in AnimateDiff's second version; its modules' norms are per frame, as that was trained."""

    def __init__(self, settings: ImageSettings) -> None:
        attending = len(settings.widths) - 1
        super().__init__(
            block_out_channels=settings.widths,
            down_block_types=("CrossAttnDownBlockMotion",) * attending + ("DownBlockMotion",),
            up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * attending,
            cross_attention_dim=settings.context_width,
            num_attention_heads=settings.heads,
            motion_num_attention_heads=settings.heads,
        )
        for module in self.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.norm.register_forward_pre_hook(_frame_by_frame)
                module.norm.register_forward_hook(_together_again)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: object, **options: object) -> object:
        """Tables of positions are no weights: they are what they should be, whatever is given."""
        fixed = {
            name: frame_positions(tensor.shape[1], tensor.shape[2], tensor)[None]
            for name, tensor in state_dict.items()
            if name.endswith(".pos_embed.pe")
        }
        return super().load_state_dict({**state_dict, **fixed}, *args, **options)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """x (B, C, F, H, W), timesteps (B,), context (B, N, D) -> shape of x."""
        texts = context.repeat_interleave(x.shape[2], dim=0)
        found: Tensor = super().forward(x, timesteps, texts, return_dict=False)[0]
        return found


class UNetWithOurs(UNet):
    """The same image layers, called as HARIVO Apply calls ComfyUI's, around our motion modules."""

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__(settings)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.motion_modules = nn.ModuleList(
                _Called(module.proj_out.out_features, settings.heads) for module in block.motion_modules
            )
        for layer in self.modules():
            if isinstance(layer, ResnetBlock2D):
                layer.forward = _residual_in_parts(layer, layer.forward)  # type: ignore[method-assign]
            elif isinstance(layer, Transformer2DModel):
                layer.forward = _transformer_in_parts(layer, layer.forward)  # type: ignore[method-assign]


def _residual_in_parts(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(input_tensor: Tensor, temb: Tensor) -> Tensor:
        return map_images(layer, forward, input_tensor, temb, residual_values(input_tensor))

    return run


def _transformer_in_parts(layer: nn.Module, forward: Callable[..., tuple[Tensor]]) -> Callable[..., tuple[Tensor]]:
    def run(hidden_states: Tensor, encoder_hidden_states: Tensor, **options: object) -> tuple[Tensor]:
        def part(images: Tensor, texts: Tensor) -> Tensor:
            return forward(images, encoder_hidden_states=texts, **options)[0]

        return (map_images(layer, part, hidden_states, encoder_hidden_states, transformer_values(hidden_states)),)

    return run


class _Called(nn.Module):
    """A motion module as diffusers calls it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.module = motion_module(channels, heads)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: object = None,
        timestep: object = None,
        class_labels: object = None,
        num_frames: int = 1,
        cross_attention_kwargs: object = None,
    ) -> Tensor:
        """((B F), C, H, W) -> same shape."""
        moved: Tensor = self.module(hidden_states, Step(num_frames, hidden_states.new_empty(0)))
        return moved


def _frame_by_frame(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """(B, C, F, H, W), which is a view of frames, as these ((B F), C, H, W)."""
    norm.frames = inputs[0].shape[2]
    return (inputs[0].transpose(1, 2).flatten(0, 1),)


def _together_again(norm: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.unflatten(0, (-1, norm.frames)).transpose(1, 2)
