"""Averaged weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import distributed


def ema_decay(limit: float, update: int) -> float:
    """The decay of the `update`-th update (counted from 1): min(limit, (1 + n) / (10 + n))."""
    return min(limit, (1 + update) / (10 + update))


class Ema:
    """Copies of networks whose parameters follow the trained ones slowly."""

    def __init__(self, networks: dict[str, nn.Module], limit: float) -> None:
        self.networks = {
            name: copy.deepcopy(network).requires_grad_(False).eval() for name, network in networks.items()
        }
        self.limit = limit
        self.updates = 0

    @torch.no_grad()
    def update(self, networks: dict[str, nn.Module]) -> None:
        """Move the averages towards the networks' current parameters."""
        self.updates += 1
        weight = 1 - ema_decay(self.limit, self.updates)
        for name, network in networks.items():
            averages: list[Tensor] = [distributed.local(average) for average in self.networks[name].parameters()]
            values: list[Tensor] = [distributed.local(value) for value in network.parameters()]
            torch._foreach_lerp_(averages, values, weight)

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {"updates": self.updates, "networks": {name: net.state_dict() for name, net in self.networks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.updates = state["updates"]
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
