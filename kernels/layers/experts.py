"""Feed-forward layers of several experts, which are one when training is over (VersVideo section 3.2).

Shapes: B sequences, L tokens, C channels; N experts. Between the axis of tokens and that of channels there may be more.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from .attention import FeedForward
from .operations import BuildKeywords, TorchOperations

EXPERT = re.compile(r"\.experts\.(\d+)\.")
"""In the names of an expert's tensors."""


class ExpertFeedForward(nn.Module):
    """In training tokens are dealt at random to N experts (Eq. 6); in use one layer with the mean of their weights."""

    def __init__(
        self,
        channels: int,
        experts: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: type[TorchOperations] = TorchOperations,
    ) -> None:
        super().__init__()
        build: BuildKeywords = {"dtype": dtype, "device": device, "operations": operations}
        self.experts = nn.ModuleList(FeedForward(channels, **build) for _ in range(experts))

    @property
    def deals(self) -> bool:
        """Whether tokens of a sequence go to different experts, so that sequences must be given whole."""
        return self.training

    def forward(self, x: Tensor, permutation: Tensor | None = None) -> Tensor:
        """x (B, L, ..., C) -> same shape.

        In training every expert gets a group of the permuted tokens, the first L mod N groups one token more. All
        sequences are permuted alike, at random where no permutation (L,) is given.
        """
        if not self.deals:
            return self.as_one()(x)
        if permutation is None:
            permutation = torch.randperm(x.shape[1], device=x.device)
        groups = x[:, permutation].tensor_split(len(self.experts), dim=1)
        given = [expert(group) for expert, group in zip(self.experts, groups, strict=True) if group.shape[1]]
        return torch.cat(given, dim=1)[:, permutation.argsort()]

    def as_one(self) -> Callable[[Tensor], Tensor]:
        """The one layer of use, for as long as weights do not change."""
        weights = self.merged()
        return lambda x: torch.func.functional_call(self.experts[0], weights, (x,))

    def merged(self) -> dict[str, Tensor]:
        """Weights of the one layer, by the names of `FeedForward`."""
        names = dict(self.experts[0].named_parameters())
        return {name: mean_of(expert.get_parameter(name) for expert in self.experts) for name in names}

    @torch.no_grad()
    def exchange(self, rate: float) -> None:
        """After a step of training, E_i <- (1 - rate) E_i + rate * mean of the others, of all at once (Eq. 7).

        The mean over the experts stays; what an expert differs from it by shrinks by rate * N / (N - 1).
        """
        others = len(self.experts) - 1
        if not others:
            return
        for weights in zip(*(expert.parameters() for expert in self.experts), strict=True):
            total = torch.stack([*weights]).sum(0)
            for weight in weights:
                weight.mul_(1 - rate - rate / others).add_(total, alpha=rate / others)


def exchange_experts(network: nn.Module, rate: float = 0.001) -> None:
    """Exchange the experts within every layer of a network, spatial and temporal ones each among themselves."""
    for module in network.modules():
        if isinstance(module, ExpertFeedForward):
            module.exchange(rate)


def mean_of(tensors: Iterable[Tensor]) -> Tensor:
    """Mean of tensors of one shape, one after the other, in float32 at least; in the dtype of the first."""
    total, count, kind = None, 0, torch.float32
    for tensor in tensors:
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        total = wide if total is None else total + wide
        count, kind = count + 1, tensor.dtype
    if total is None:
        raise ValueError("There is no tensor to take the mean of.")
    return (total / count).to(kind)


def merge_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network in which every layer of experts is one layer with the mean of their weights.

    Names of an expert's tensors hold `.experts.<number>.`, which is left out. Beside the result one tensor is in memory
    at a time, where `tensors` are read from disk when they are used.

    Raises:
        ValueError: experts of a layer are not numbered without gaps, or differ in their tensors.
    """
    layers: dict[str, dict[str, dict[int, str]]] = {}
    for name in tensors:
        if found := EXPERT.search(name):
            parts = layers.setdefault(name[: found.start()], {})
            parts.setdefault(name[found.end() :], {})[int(found[1])] = name
    merged = {name: tensor for name, tensor in tensors.items() if not EXPERT.search(name)}
    for layer, parts in layers.items():
        count = 1 + max(number for names in parts.values() for number in names)
        for part, names in parts.items():
            absent = sorted(set(range(count)) - names.keys())
            if absent:
                raise ValueError(f"{layer} has {count} experts, but {part} of number {absent[0]} is missing")
            shapes = {tuple(tensors[name].shape) for name in names.values()}
            if len(shapes) > 1:
                raise ValueError(f"{layer} has experts of different shapes in {part}: {sorted(shapes)}")
            merged[f"{layer}.{part}"] = mean_of(tensors[names[number]] for number in range(count))
    return merged
