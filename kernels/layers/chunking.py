"""Exact chunking: parts of a tensor that do not see each other are processed one after the other.

It bounds the temporaries of wide layers, and on CPU keeps them in the cache, without changing any number's meaning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BUDGET_BYTES = {"cpu": 6 << 20, "cuda": 96 << 20}
_OTHER_BYTES = 96 << 20
_LOW_MEMORY_BYTES = 16 << 20
_setting = {"low memory": False}


@contextmanager
def low_memory(on: bool = True) -> Iterator[None]:
    """While it is open, parts are at most 16 MB large on every device: slower on GPUs, for those with little memory."""
    before = _setting["low memory"]
    _setting["low memory"] = on
    try:
        yield
    finally:
        _setting["low memory"] = before


def chunk_size(count: int, width: int, like: Tensor) -> int:
    """How many of `count` rows with temporaries of `width` values each fit the budget of the device of `like`."""
    budget = _BUDGET_BYTES.get(like.device.type, _OTHER_BYTES)
    budget = min(budget, _LOW_MEMORY_BYTES) if _setting["low memory"] else budget
    return max(1, min(count, budget // (width * like.element_size())))


def add_residual(x: Tensor, function: Callable[[Tensor], Tensor], dim: int, width: int) -> Tensor:
    """x + function(x) for a function that treats the slices along `dim` independently.

    Args:
        x: any shape; overwritten unless gradients are recorded.
        function: maps a slice of x to a tensor of the same shape.
        dim: the axis along which x is sliced.
        width: values of temporary memory that the function needs for one slice.
    """
    if torch.is_grad_enabled():
        return x + function(x)
    for part in x.split(chunk_size(x.shape[dim], width, x), dim):
        part.add_(function(part))
    return x


def map_frames(
    function: Callable[[Tensor, Tensor], Tensor], frames: Tensor, rows: Tensor, width: int, fewest: int = 1
) -> Tensor:
    """function(frames, rows) for a function that treats frames, each with its row, independently.

    Args:
        function: maps frames and their rows to frames of any one size.
        frames: (N, C, H, W).
        rows: (N, E).
        width: values of temporary memory that the function needs for one frame.
        fewest: frames that are processed together at least.

    Returns:
        (N, C', H', W') in channels-last memory.
    """
    count = max(fewest, chunk_size(len(frames), width, frames))
    if torch.is_grad_enabled() or count >= len(frames):
        return function(frames, rows)
    first = function(frames[:count], rows[:count])
    size = (len(frames), *first.shape[1:])
    out = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    out[:count] = first
    for start in range(count, len(frames), count):
        end = start + count
        out[start:end] = function(frames[start:end], rows[start:end])
    return out


def map_images(
    layer: nn.Module, function: Callable[[Tensor, Tensor], Tensor], images: Tensor, rows: Tensor, width: int
) -> Tensor:
    """function(images, rows) for a layer of an image model, which takes each image, with its row, by itself.

    Layers that were made for one image at a time take a whole clip here, which is where most memory goes. On CPUs parts
    are quicker too, as long as the layer's weights, which are read again for each, are smaller than they are. GPUs take
    whole clips: those that have little memory would have to be sent the weights for each part.

    Args:
        layer: whose weights the function reads.
        function: maps images and their rows to images of any one size.
        images: (N, C, H, W).
        rows: (N, ...), or one for all images.
        width: values of temporary memory that the function needs for one image.
    """
    if images.device.type != "cpu" or len(rows) != len(images):
        return function(images, rows)
    weights = sum(weight.nbytes for weight in layer.parameters())
    return map_frames(function, images, rows, width, max(1, weights // (width * images.element_size())))


def transformer_values(images: Tensor) -> int:
    """Values of temporary memory for an image (N, C, H, W) in a transformer with a feed-forward layer of four times C.

    Twice four times C and their product, beside the tokens and what is added to them.
    """
    return 16 * images[0].numel()


def residual_values(images: Tensor) -> int:
    """The same in a residual block: norms, activations and convolutions, of more channels where it has a new width."""
    return 6 * images[0].numel()
