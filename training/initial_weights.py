"""Networks that go on from weights of a finished run, or of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from torch import nn

from ..model_loaders.checkpoint import LatentSpec, read
from .export import Trained
from .image_model import network_of
from .settings import RecipeError, Table

log = logging.getLogger(__name__)


def start_from(path: Path, networks: Mapping[str, nn.Module]) -> Table:
    """Load the weights of every network; returns what is known of the latents that they were made for.

    Raises RecipeError when the file is missing, or lacks one of the networks, or has it in another size.
    """
    if not path.exists():
        raise RecipeError(f"initialization.weights: {path} does not exist; name a run folder, checkpoint or bundle")
    given, facts = _open(path)
    for role, network in networks.items():
        if role not in given:
            found = ", ".join(sorted(given)) or "nothing"
            raise RecipeError(f"initialization.weights: {path} holds {found}, expected a {role} as well")
        _check_same(path, role, given[role], network)
        network.load_state_dict(given[role].state_dict())
        log.info("%s: all %d tensors from %s", role, len(network.state_dict()), path)
    return facts


def _open(path: Path) -> tuple[dict[str, nn.Module], Table]:
    """Networks by role, and the facts of their latents."""
    if path.is_dir() or path.suffix == ".pt":
        trained = Trained(path)
        return trained.networks, trained.facts
    checkpoint = read(path)
    networks = {role: network_of(component, path.name) for role, component in checkpoint.components.items()}
    known = asdict(checkpoint.latent)
    return networks, {field.name: known[field.name] for field in fields(LatentSpec) if field.name != "channels"}


def _check_same(path: Path, role: str, given: nn.Module, wanted: nn.Module) -> None:
    if type(given) is not type(wanted):
        raise RecipeError(
            f"initialization.weights: the {role} in {path} is a {type(given).__name__}, expected "
            f"{type(wanted).__name__}"
        )
    found, expected = asdict(given.config), asdict(wanted.config)  # type: ignore[arg-type]
    for name, value in expected.items():
        if found[name] != value:
            raise RecipeError(
                f"initialization.weights: the {role} in {path} has {name} {found[name]}, the recipe says {value}"
            )
