"""Show-1's released files with few channels: names of tensors as released, in two levels of one block each."""

import torch

LEVELS = (32, 64)
EMBEDDING, CONTEXT = 128, 32
TEXT_WIDTH = 64
"""Of T5; pooling has 64 heads in every file that comes without settings."""
EXPERT_TEXT_WIDTH = 24

Shapes = dict[str, tuple[int, ...]]


def below(place: str, shapes: Shapes) -> Shapes:
    """The same one level deeper."""
    return {f"{place}.{name}": shape for name, shape in shapes.items()}


def layer(name: str, outputs: int, *inputs: int, bias: bool = True) -> Shapes:
    """A linear layer, a convolution or, without inputs, a norm."""
    return {f"{name}.weight": (outputs, *inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def residual(inputs: int, outputs: int, scales: bool) -> Shapes:
    """A residual block; with `scales` the embedding gives scale and shift."""
    shapes = layer("norm1", inputs) | layer("conv1", outputs, inputs, 3, 3)
    shapes |= layer("time_emb_proj", (2 if scales else 1) * outputs, EMBEDDING)
    shapes |= layer("norm2", outputs) | layer("conv2", outputs, outputs, 3, 3)
    return shapes | (layer("conv_shortcut", outputs, inputs, 1, 1) if inputs != outputs else {})


def temporal_convolution(width: int) -> Shapes:
    """Four units of norm and convolution."""
    shapes: Shapes = {}
    for unit in range(1, 5):
        shapes |= layer(f"conv{unit}.0", width)
        shapes |= layer(f"conv{unit}.{2 if unit == 1 else 3}", width, width, 3, 1, 1)
    return shapes


def transformer(width: int, text: int | None = None, inner: int | None = None) -> Shapes:
    """Over the frames of a pixel, or over the pixels of a frame and the text."""
    inner = inner or width
    shapes = layer("norm", width) | layer("proj_in", inner, width) | layer("proj_out", width, inner)
    block: Shapes = {}
    for number, source in ((1, inner), (2, text or inner)):
        block |= layer(f"norm{number}", inner) | layer(f"attn{number}.to_out.0", inner, inner)
        for part in "qkv":
            block |= layer(f"attn{number}.to_{part}", inner, inner if part == "q" else source, bias=False)
    block |= layer("norm3", inner) | layer("ff.net.0.proj", 8 * inner, inner) | layer("ff.net.2", inner, 4 * inner)
    return shapes | below("transformer_blocks.0", block)


def joint_attention(width: int) -> Shapes:
    """Of pixels to the text and to each other."""
    shapes = layer("group_norm", width) | layer("norm_cross", CONTEXT) | layer("to_out.0", width, width)
    for part, source in (("to_q", width), ("to_k", width), ("to_v", width)):
        shapes |= layer(part, width, source)
    return shapes | layer("add_k_proj", width, CONTEXT) | layer("add_v_proj", width, CONTEXT)


def pooled_text() -> Shapes:
    """The text as one vector."""
    shapes = layer("norm1", TEXT_WIDTH) | {"pool.positional_embedding": (1, TEXT_WIDTH)}
    for part in "qkv":
        shapes |= layer(f"pool.{part}_proj", TEXT_WIDTH, TEXT_WIDTH)
    return shapes | layer("proj", EMBEDDING, TEXT_WIDTH) | layer("norm2", EMBEDDING)


def unet(inputs: int, outputs: int, pixels: bool, temporal: bool) -> Shapes:
    """Two levels, the deeper one with attention."""
    narrow, wide = LEVELS
    shapes = layer("conv_in", narrow, inputs, 3, 3) | layer("conv_norm_out", narrow)
    shapes |= layer("conv_out", outputs, narrow, 3, 3)
    shapes |= layer("time_embedding.linear_1", EMBEDDING, narrow)
    shapes |= layer("time_embedding.linear_2", EMBEDDING, EMBEDDING)

    def blocks(place: str, widths: list[tuple[int, int]], attends: int) -> None:
        for index, (before, after) in enumerate(widths):
            shapes.update(below(f"{place}.resnets.{index}", residual(before, after, pixels)))
            if temporal:
                shapes.update(below(f"{place}.temp_convs.{index}", temporal_convolution(after)))
        for index in range(attends):
            width = widths[index][1]
            spatial = joint_attention(width) if pixels else transformer(width, EXPERT_TEXT_WIDTH)
            shapes.update(below(f"{place}.attentions.{index}", spatial))
            if temporal:
                shapes.update(below(f"{place}.temp_attentions.{index}", transformer(width)))

    blocks("down_blocks.0", [(narrow, narrow)], 0)
    blocks("down_blocks.1", [(narrow, wide)], 1)
    blocks("mid_block", [(wide, wide), (wide, wide)], 1)
    blocks("up_blocks.0", [(2 * wide, wide), (wide + narrow, wide)], 2)
    blocks("up_blocks.1", [(wide + narrow, narrow), (2 * narrow, narrow)], 0)
    for place, width in (("down_blocks.0.downsamplers.0", narrow), ("up_blocks.0.upsamplers.0", wide)):
        shapes |= below(place, residual(width, width, True) if pixels else layer("conv", width, width, 3, 3))
    return shapes


def pixel_stage(inputs: int, upscales: bool = False, temporal: bool = True) -> dict[str, torch.Tensor]:
    """Keyframes (3 inputs), interpolation (7), super-resolution (6), or DeepFloyd IF's of pictures (not temporal)."""
    shapes = unet(inputs, 6, True, temporal)
    shapes |= layer("encoder_hid_proj", CONTEXT, TEXT_WIDTH) | below("add_embedding", pooled_text())
    if upscales:
        shapes |= layer("class_embedding.linear_1", EMBEDDING, LEVELS[0])
        shapes |= layer("class_embedding.linear_2", EMBEDDING, EMBEDDING)
    return empty(shapes)


def latent_stage() -> dict[str, torch.Tensor]:
    """The second super-resolution, in ModelScope's layout: heads of 8 channels, of which the stem has eight."""
    return empty(unet(4, 4, False, True) | below("transformer_in", transformer(LEVELS[0], inner=64)))


def empty(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes."""
    return {name: torch.empty(shape) for name, shape in shapes.items()}
