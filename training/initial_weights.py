"""Networks that go on from weights of a finished run, or of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.networks.lvdm import LatentVideoUNet
from ..kernels.networks.show1 import PixelUNet
from .opened import open_networks
from .settings import InputError, RecipeError, Table

log = logging.getLogger(__name__)
KEY = "initialization.weights"
_GROWING: dict[type, tuple[str, ...]] = {
    PixelUNet: ("in_channels",),
    LatentVideoUNet: ("in_channels", "noise_levels", "temporal_length"),
}
"""What of a network may be less in the one that it goes on from."""


def start_from(path: Path, networks: Mapping[str, nn.Module]) -> Table:
    """Load the weights of every network; returns what is known of the latents that they were made for.

    A network on pixels goes on from one that is given less beside the noisy frames: what it is given more is without
    effect at first, as Show-1's interpolation goes on from the keyframes. So does LVDM's mask model from one without a
    mask, and with shorter position tables, whose outermost rows then stand for what is farther away.

    Raises RecipeError when they cannot be read, or lack one of the networks, or have it in another size.
    """
    try:
        opened = open_networks(path)
    except InputError as error:
        raise RecipeError(f"{KEY}: {error}") from error
    for role, network in networks.items():
        if role not in opened.networks:
            found = ", ".join(sorted(opened.networks)) or "nothing"
            raise RecipeError(f"{KEY}: {path} holds {found}, expected a {role} as well")
        given = opened.networks[role]
        _check_same(f"{KEY}: the {role} in {path}", given, network)
        network.load_state_dict(_state_for(network, given))
        log.info("%s: all %d tensors from %s", role, len(network.state_dict()), path)
    return opened.facts


def _state_for(network: nn.Module, given: nn.Module) -> dict[str, Tensor]:
    """The given weights, with zeros for the channels that they do not read."""
    state = given.state_dict()
    if isinstance(network, PixelUNet):
        kernels = state["conv_in.weight"]
        missing = network.config.in_channels - kernels.shape[1]
        state["conv_in.weight"] = F.pad(kernels, (0, 0, 0, 0, 0, missing))
    if isinstance(network, LatentVideoUNet):
        state = {name: _grown(state.get(name), tensor) for name, tensor in network.state_dict().items()}
    return state


def _grown(given: Tensor | None, wanted: Tensor) -> Tensor:
    """A given tensor in the size of the wanted one: position tables (rows, D) by their outermost rows, else zeros."""
    if given is None:
        return torch.zeros_like(wanted)
    if given.shape == wanted.shape:
        return given
    if given.ndim == 2:
        rows = torch.arange(len(wanted)) - (len(wanted) - len(given)) // 2
        return given[rows.clamp(0, len(given) - 1)]
    return F.pad(given, (*[0] * (2 * given.ndim - 4), 0, wanted.shape[1] - given.shape[1]))


def _check_same(what: str, given: nn.Module, wanted: nn.Module) -> None:
    if type(given) is not type(wanted):
        raise RecipeError(f"{what} is a {type(given).__name__}, expected a {type(wanted).__name__}")
    found, expected = asdict(given.config), asdict(wanted.config)  # type: ignore[call-overload]
    for name, value in expected.items():
        if name in _GROWING.get(type(wanted), ()) and found[name] < value:
            continue
        if found[name] != value:
            raise RecipeError(f"{what} has {name} {found[name]}, the recipe has {value}")
