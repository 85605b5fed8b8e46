"""What a model file is: its family, its networks with their configurations, and its weights under our names.

Every module of this package that defines `FAMILY` is asked in turn; a new system adds a module and nothing else.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.layers.operations import TorchOperations
from ..kernels.sampling.schedules import NoiseSchedule
from .errors import CheckpointError
from .files import FOLDER_PARTS, UNET, read_tensors
from .keymap import check_finite, check_tensors

MODEL, VAE, TEXT_ENCODER = "diffusion_model", "vae", "text_encoder"


@dataclass(frozen=True)
class LatentSpec:
    """The space a diffusion model works in: z = scale * (a + shift) for latents `a` of the autoencoder.

    Attributes:
        channels: of the latents.
        spatial, temporal: how many pixels and frames one latent covers along an axis.
        scale, shift: as above.
        rgb_factors: linear map of a latent to a preview colour, (channels, 3), with `rgb_bias` (3,).
        dimensions: 3 of videos, 2 of pictures.
    """

    channels: int = 4
    spatial: int = 8
    temporal: int = 1
    scale: float = 1.0
    shift: float = 0.0
    rgb_factors: tuple[tuple[float, ...], ...] | None = None
    rgb_bias: tuple[float, ...] | None = None
    dimensions: int = 3

    @property
    def pixels(self) -> bool:
        """Whether latents are the colours of frames themselves, in -1..1."""
        return (self.channels, self.spatial, self.temporal, self.scale, self.shift) == (3, 1, 1, 1.0, 0.0)


class _UndrawnOperations(TorchOperations):
    """torch.nn, but tables are not drawn: on the meta device that alone loads a compiler, which takes seconds."""

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            """Leave the table as it is."""
            return None


@dataclass(frozen=True)
class Component:
    """One network of a file.

    Attributes:
        network: class of our own network, or None where ComfyUI has the network.
        config: its configuration.
        tensors: weights by our names, or by ComfyUI's names.
    """

    network: type[nn.Module] | None
    config: object
    tensors: Mapping[str, Tensor]

    def build(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: object,
    ) -> nn.Module:
        """The network with these weights; options go to its constructor."""
        if self.network is None:
            raise CheckpointError("This network is built by ComfyUI, not by this package.")
        network = self.network(self.config, dtype=dtype, device=device, **options)
        network.load_state_dict(dict(self.tensors))
        return network

    def blank(self) -> nn.Module:
        """The network on the meta device, to compare its shapes with a file's."""
        if self.network is None:
            raise CheckpointError("This network is built by ComfyUI, not by this package.")
        with torch.device("meta"):
            return self.network(self.config, operations=_UndrawnOperations)


@dataclass(frozen=True)
class Checkpoint:
    """A model file that was understood.

    Attributes:
        name: file name, for messages.
        family: system, such as "lvdm".
        components: networks by role: "diffusion_model", "vae", "text_encoder".
        latent: space of the diffusion model.
        schedule: its noise schedule.
        metadata: what the file says of itself.
    """

    name: str
    family: str
    components: Mapping[str, Component]
    latent: LatentSpec = LatentSpec()
    schedule: NoiseSchedule = NoiseSchedule()
    metadata: Mapping[str, object] = field(default_factory=dict)

    def component(self, role: str) -> Component:
        """The network of a role.

        Raises:
            CheckpointError: the file has none; the message says which it has.
        """
        if role not in self.components:
            found = ", ".join(sorted(self.components)) or "none"
            wanted = role.replace("_", " ")
            raise CheckpointError(f"{self.name} has no {wanted}, it has: {found}. Load it from its own file.")
        return self.components[role]

    def without_weights(self) -> "Checkpoint":
        """The same description, keeping no tensor alive."""
        return replace(self, components={role: replace(part, tensors={}) for role, part in self.components.items()})


@dataclass(frozen=True)
class ReadOptions:
    """Choices that a file leaves open.

    Attributes:
        ema: take the averaged copy of the weights where the file has one.
        scaling: name of the latent scale and shift, or "auto".
    """

    ema: bool = False
    scaling: str = "auto"


@dataclass(frozen=True)
class Family:
    """How one system's files are recognised and read.

    Attributes:
        name: of the system.
        recognise: whether tensors (by name) and metadata are this system's.
        read: turns them into a checkpoint; gets file name, tensors, metadata and options.
        scalings: names of latent scalings that the user may choose from.
    """

    name: str
    recognise: Callable[[Mapping[str, Tensor], Mapping[str, str]], bool]
    read: Callable[[str, Mapping[str, Tensor], Mapping[str, str], ReadOptions], Checkpoint]
    scalings: tuple[str, ...] = ()


def families() -> list[Family]:
    """All families of this package, in the order of their module names."""
    package = importlib.import_module(__package__)
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg)
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    return [module.FAMILY for module in modules if hasattr(module, "FAMILY")]


def read(path: Path | str, options: ReadOptions | None = None, roles: Collection[str] | None = None) -> Checkpoint:
    """Read a model file, find out what it is, and check that every tensor is there, fits, and is finite.

    With `roles`, of a folder only these networks are read beside the denoiser: a text encoder may be the largest part.

    Raises:
        CheckpointError: it cannot be read, is of no known family, or its tensors do not fit its network.
    """
    path = Path(path)
    parts = tuple(part for part in FOLDER_PARTS if roles is None or part == UNET or part in roles)
    tensors, metadata = read_tensors(path, parts)
    checkpoint = interpret(path.name, tensors, metadata, options)
    for component in checkpoint.components.values():
        if component.network is not None:
            check_tensors(_blank(component, path.name), component.tensors, path.name)
        check_finite(component.tensors, path.name)
    return checkpoint


def interpret(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: ReadOptions | None = None
) -> Checkpoint:
    """What `read` does once the tensors are in memory, without the check of every tensor.

    Raises:
        CheckpointError: no family knows these tensors, or those that tell the configuration are missing or misshapen.
    """
    family = next((family for family in families() if family.recognise(tensors, metadata)), None)
    if family is None:
        raise CheckpointError(f"{name} {_what_it_seems(tensors)}")
    try:
        return family.read(name, tensors, metadata, options or ReadOptions())
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{name} was taken for a file of the {family.name} family, but tensors that every such file has are "
            f"missing or have other shapes ({error!r}): it is damaged, or of another model."
        ) from error


def _blank(component: Component, name: str) -> nn.Module:
    try:
        return component.blank()
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} describes a network that cannot be built ({error}): {component.config}. The file is damaged, or "
            "of another model."
        ) from error


def _what_it_seems(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    if any("control_model" in name or "controlnet" in name for name in names):  # some are called lora_controlnet
        return "is a ControlNet: use Load ControlNet Model."
    if any("lora_" in name or ".lora." in name for name in names):
        return "is a LoRA, not a model: load the base model here and add this file with Load LoRA."
    if "model.diffusion_model.input_blocks.0.0.weight" in tensors:
        return "is an image model: use the core node Load Checkpoint for it."
    sample = ", ".join(names[:3])
    return f"is not a model that this pack knows ({len(names)} tensors such as {sample}): see the README for the list."
