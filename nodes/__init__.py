"""Nodes of the pack. Every module here that has a `NODES` list is part of it."""

import importlib
import pkgutil

from .api import ComfyExtension, io

OLDEST_COMFYUI = (0, 20, 1)


def all_nodes() -> list[type[io.ComfyNode]]:
    """The node classes of all modules of this package, by module name."""
    modules = [importlib.import_module(f".{info.name}", __package__) for info in pkgutil.iter_modules(__path__)]
    return [node for module in modules for node in getattr(module, "NODES", [])]


def check_comfyui(version: str) -> None:
    """Refuse a ComfyUI that lacks what the pack needs.

    Raises:
        RuntimeError: it is too old; the message says what to do.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < OLDEST_COMFYUI:
        needed = ".".join(map(str, OLDEST_COMFYUI))
        raise RuntimeError(f"Weft needs ComfyUI {needed} or newer, this is {version}: update ComfyUI.")


class WeftExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """Register the model folders."""
        from . import folders

        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return all_nodes()


async def comfy_entrypoint() -> WeftExtension:
    """Called by ComfyUI when it loads the pack."""
    import comfyui_version

    check_comfyui(comfyui_version.__version__)
    return WeftExtension()
