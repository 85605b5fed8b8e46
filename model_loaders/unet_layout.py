"""The numbering of U-Net blocks that released models share (that of Stable Diffusion 1), as rules and as numbers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .keymap import Rule


def _down(part: str) -> Rule:
    suffix = {"residual": r"\.0\.", "attention": r"\.1\.", "downsample.conv": r"\.0\.op\."}[part]
    # Entry 0 of the released list is the input convolution, which stands apart here.
    return rf"^input_blocks\.(\d+){suffix}", lambda match: f"skeleton.down.{int(match[1]) - 1}.{part}."


PLACES: tuple[Rule, ...] = (
    (r"^input_blocks\.0\.0\.", "conv_in."),
    _down("downsample.conv"),
    _down("residual"),
    _down("attention"),
    (r"^middle_block\.0\.", "skeleton.middle.0.residual."),
    (r"^middle_block\.1\.", "skeleton.middle.0.attention."),
    (r"^middle_block\.2\.", "skeleton.middle.1.residual."),
    (r"^output_blocks\.(\d+)\.[12]\.conv\.", r"skeleton.up.\1.upsample.conv."),
    (r"^output_blocks\.(\d+)\.0\.", r"skeleton.up.\1.residual."),
    (r"^output_blocks\.(\d+)\.1\.", r"skeleton.up.\1.attention."),
    (r"^out\.0\.", "norm_out.norm."),
    (r"^out\.2\.", "conv_out."),
    (r"^time_embed\.0\.", "time_embedding.hidden."),
    (r"^time_embed\.2\.", "time_embedding.out."),
)

RESIDUAL: tuple[Rule, ...] = (
    (r"\.in_layers\.0\.", ".norm1.norm."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time."),
    (r"\.out_layers\.0\.", ".norm2.norm."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".skip."),
)


def diffusers_places(
    residual_blocks: int, parts: Mapping[str, str], downsampler: str, upsampler: Callable[[int], int]
) -> tuple[Rule, ...]:
    """Rules from names of diffusers' U-Nets to released ones.

    Args:
        residual_blocks: per level on the way down; there is one more on the way up.
        parts: what the members of a level are called in an entry of the released lists, such as "attentions": "1.".
        downsampler: what its convolution is called there.
        upsampler: its place in an entry, by the number of its level on the way up.
    """
    steps = residual_blocks + 1

    def member(blocks: str, part: str) -> Rule:
        start, released = (1, "input") if blocks == "down" else (0, "output")

        def place(match: re.Match[str]) -> str:
            return f"{released}_blocks.{start + int(match[1]) * steps + int(match[2])}.{parts[part]}"

        return rf"^{blocks}_blocks\.(\d+)\.{part}\.(\d+)\.", place

    def below(match: re.Match[str]) -> str:
        return f"input_blocks.{(int(match[1]) + 1) * steps}.{downsampler}"

    def above(match: re.Match[str]) -> str:
        level = int(match[1])
        return f"output_blocks.{(level + 1) * steps - 1}.{upsampler(level)}.conv."

    return (
        (r"^time_embedding\.linear_(\d)\.", lambda match: f"time_embed.{2 * int(match[1]) - 2}."),
        (r"^conv_in\.", "input_blocks.0.0."),
        *(member(blocks, part) for blocks in ("down", "up") for part in parts),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", below),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", above),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
    )


_DIFFUSERS_RESIDUAL = r"^((?:in|out)put_blocks\.\d+\.0\.|middle_block\.[023]\.)"
DIFFUSERS_RESIDUAL: tuple[Rule, ...] = (
    (rf"{_DIFFUSERS_RESIDUAL}norm1\.", r"\1in_layers.0."),
    (rf"{_DIFFUSERS_RESIDUAL}conv1\.(?!\d)", r"\1in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (rf"{_DIFFUSERS_RESIDUAL}norm2\.", r"\1out_layers.0."),
    (rf"{_DIFFUSERS_RESIDUAL}conv2\.(?!\d)", r"\1out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
"""Rules for the inside of a residual block, once its place is the released one."""


@dataclass(frozen=True)
class UNetLayout:
    """What the shapes of a U-Net's tensors (our names) say about its configuration."""

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[float, ...]
    residual_blocks: tuple[int, ...]
    attention_factors: tuple[int, ...]
    scale_shift: bool
    middle_channels: int

    @property
    def num_res_blocks(self) -> int:
        """Residual blocks of a level, of networks that have as many in each."""
        return self.residual_blocks[0]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], residual: str = "residual") -> "UNetLayout":
        """Read the layout; `residual` is a stage's residual block of frames.

        Raises:
            LookupError, ValueError: tensors that every such network has are missing.
        """
        base = tensors["conv_in.weight"]
        widths: list[list[int]] = [[]]
        attends: list[bool] = [False]
        for index in range(count(tensors, r"^skeleton\.down\.(\d+)\.")):
            stage = f"skeleton.down.{index}."
            if any(name.startswith(f"{stage}downsample.") for name in tensors):
                widths.append([])
                attends.append(False)
                continue
            widths[-1].append(tensors[f"{stage}{residual}.conv2.weight"].shape[0])
            attends[-1] |= any(name.startswith(f"{stage}attention.") for name in tensors)
        middle = tensors[f"skeleton.middle.0.{residual}.conv2.weight"].shape[0]
        return cls(
            in_channels=base.shape[1],
            out_channels=tensors["conv_out.weight"].shape[0],
            model_channels=base.shape[0],
            channel_mult=tuple(_ratio(level[0], base.shape[0]) for level in widths),
            residual_blocks=tuple(len(level) for level in widths),
            attention_factors=tuple(2**level for level, attend in enumerate(attends) if attend),
            scale_shift=tensors[f"skeleton.middle.0.{residual}.time.weight"].shape[0] == 2 * middle,
            middle_channels=middle,
        )


def _ratio(width: int, base: int) -> float:
    return width / base if width % base else width // base


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the parentheses of a pattern, over all names that it is found in."""
    return len({match[1] for name in tensors if (match := re.search(pattern, name))})
