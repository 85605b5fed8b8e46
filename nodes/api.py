"""The node API of ComfyUI, imported here and nowhere else."""

from comfy_api.v0_0_2 import ComfyExtension, InputImpl, io, ui

__all__ = ["ComfyExtension", "InputImpl", "io", "ui"]
