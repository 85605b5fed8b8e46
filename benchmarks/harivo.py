"""Motion modules inside an image UNet of Stable Diffusion 1.5's layout, AnimateDiff's and HARIVO's main cost."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..model_loaders.keymap import KeyMap
from .case import Case
from .peers.animatediff import ImageSettings, UNet, UNetWithOurs

SETTINGS = {
    "tiny": ImageSettings((32, 32, 64, 64), 24),
    "quarter": ImageSettings((160, 320, 640, 640)),
    "official": ImageSettings(),
}
# Latents: frames, height, width.
SHAPES = {"tiny": (8, 16, 16), "quarter": (16, 64, 64), "official": (16, 64, 64)}
TEXT_TOKENS = 77

_KEYS = KeyMap(
    (
        (r"(\.motion_modules\.\d+)\.", r"\1.module."),
        (r"\.module\.norm\.", ".module.norm.norm."),
        (r"\.module\.proj_(in|out)\.", r".module.project_\1."),
        (r"\.module\.transformer_blocks\.0\.", ".module.block."),
        (r"\.block\.norm3\.", ".block.feed_forward_norm."),
        (r"\.block\.ff\.net\.0\.proj\.", ".block.feed_forward.inner."),
        (r"\.block\.ff\.net\.2\.", ".block.feed_forward.out."),
        (r"\.block\.attn(\d)\.to_out\.0\.", r".block.attention\1.out."),
        (r"\.block\.attn(\d)\.to_q\.weight", r".block.attention\1.qkv.weight#0"),
        (r"\.block\.attn(\d)\.to_k\.weight", r".block.attention\1.qkv.weight#1"),
        (r"\.block\.attn(\d)\.to_v\.weight", r".block.attention\1.qkv.weight#2"),
    )
)


def _keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _KEYS({name: tensor for name, tensor in tensors.items() if "pos_embed" not in name})


def _inputs(size: str, batch: int) -> tuple[Tensor, ...]:
    frames, height, width = SHAPES[size]
    text = torch.randn(batch, TEXT_TOKENS, SETTINGS[size].context_width)
    return torch.randn(batch, 4, frames, height, width), torch.linspace(1, 961, batch).round(), text


CASES = (
    Case(
        name="animatediff",
        ours=lambda size: UNetWithOurs(SETTINGS[size]),
        peers={"diffusers": lambda size: UNet(SETTINGS[size])},
        keys=_keys,
        inputs=_inputs,
        width=lambda size: SETTINGS[size].widths[0],
        note="diffusers: UNetMotionModel with norms per frame; ours: the same image layers, on CPUs in parts as the "
        "pack runs ComfyUI's, around our motion modules",
    ),
)
