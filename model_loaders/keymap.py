"""Declarative renaming of released tensors to our names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import CheckpointError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class KeyMap:
    """Renaming rules of one network.

    Attributes:
        rules: substitutions (pattern, replacement), all applied, in this order. A name that ends in `#k` afterwards is
            part k of a tensor that is concatenated from several along its first axis.
        axes: (pattern of our names, number of axes): tensors that were released with more axes, of length one, or with
            fewer, and get such axes at their end.
    """

    rules: tuple[Rule, ...]
    axes: tuple[tuple[str, int], ...] = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename, squeeze and concatenate; works on meta tensors. ValueError where two tensors get one name."""
        axes = [(re.compile(pattern), count) for pattern, count in self.axes]
        parts: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            name, _, part = self.rename(name).partition("#")
            for pattern, count in axes:
                if pattern.search(name):
                    tensor = _with_axes(tensor, count)
            pieces = parts.setdefault(name, {})
            if int(part or 0) in pieces:
                raise ValueError(f"two tensors are both {name}")
            pieces[int(part or 0)] = tensor
        return {name: _joined([pieces[index] for index in sorted(pieces)]) for name, pieces in parts.items()}

    def rename(self, name: str) -> str:
        """One name by the rules, with the `#k` of a part."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _with_axes(tensor: Tensor, count: int) -> Tensor:
    """Drop axes of length one behind the first two until `count` are left, or add some.

    Longer ones stay and are then reported.
    """
    while tensor.ndim > count and 1 in tensor.shape[2:]:
        tensor = tensor.squeeze(2 + tensor.shape[2:].index(1))
    return tensor[(..., *[None] * (count - tensor.ndim))]


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_tensors(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Compare tensors with what a network (possibly on the meta device) needs.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape or not floating point; up to three are named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    complaints = [f"{name} {expected[name]} is missing" for name in expected if name not in tensors]
    complaints += [f"{name} {tuple(tensors[name].shape)} is unexpected" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            complaints.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        elif not tensor.is_floating_point():
            complaints.append(f"{name} holds {tensor.dtype} values, expected floating point")
    if complaints:
        more = f", and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise CheckpointError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(complaints[:3])}{more}. "
            "The file is damaged, or of another model."
        )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Look at every value.

    Raises:
        CheckpointError: a tensor holds NaN or infinite values; up to three are named.
    """
    broken = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if broken:
        more = f", and {len(broken) - 3} more tensors" if len(broken) > 3 else ""
        raise CheckpointError(
            f"{source} holds NaN or infinite values in {', '.join(broken[:3])}{more}, expected finite weights: "
            "its training broke down, or it was converted to a dtype that is too small. Use another file."
        )


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # float8 cannot be asked.
    return bool(torch.isfinite(tensor.half() if tensor.element_size() == 1 else tensor).all())
