"""What one image model has that another lacks, as a LoRA file for ComfyUI's loaders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from ..model_loaders.files import save_tensors
from .image_unet import ImageUNet, component_of
from .opened import Opened, open_networks
from .revision import git_revision
from .settings import InputError


def export_lora(source: Path, base: Path, rank: int, out: Path) -> int:
    """Write the difference of two image models, truncated to a rank; returns the number of its values.

    Raises InputError when they are no image models of one size, or read text by different encoders.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: found the ending {out.suffix!r}, expected .safetensors")
    tuned, given = open_networks(source), open_networks(base)
    tensors = lora_between(_unet(given, base), _unet(tuned, source), rank)
    if not _same_text(given, tuned):
        raise InputError(
            f"{source}: its text encoder is not that of {base}, which a LoRA of the UNet leaves as it is: train with "
            f'text_encoder.kind = "given" and text_encoder.path = "{base}"'
        )
    metadata = {"system": "image", "rank": rank, "revision": git_revision()}
    save_tensors(out, {name: tensor.half() for name, tensor in tensors.items()}, metadata)
    return sum(tensor.numel() for tensor in tensors.values())


def lora_between(base: ImageUNet, tuned: ImageUNet, rank: int) -> dict[str, Tensor]:
    """Factors of every weight's difference, best for their rank, and the whole difference of norms and biases."""
    if base.config != tuned.config:
        raise InputError(f"the models differ in size: found {tuned.config}, expected {base.config}")
    before, after = component_of(base).tensors, component_of(tuned).tensors
    found: dict[str, Tensor] = {}
    for name, tensor in after.items():
        module, _, kind = f"diffusion_model.{name}".rpartition(".")
        difference = tensor.float() - before[name].float()
        if difference.ndim < 2:
            found[f"{module}.{'diff_b' if kind == 'bias' else 'diff'}"] = difference
        else:
            found[f"{module}.lora_up.weight"], found[f"{module}.lora_down.weight"] = _factors(difference, rank)
            found[f"{module}.alpha"] = torch.tensor(float(len(found[f"{module}.lora_down.weight"])))
    return found


def _factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A weight (out, in, ...) as up (out, r, 1, ...) and down (r, in, ...), by its largest singular values."""
    left, values, right = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    up, down = left[:, :kept] * roots, roots[:, None] * right[:kept]
    ones = (1,) * (difference.ndim - 2)
    return up.reshape(len(up), kept, *ones), down.reshape(kept, *difference.shape[1:])


def _unet(opened: Opened, path: Path) -> ImageUNet:
    network = opened.networks.get(MODEL)
    if not isinstance(network, ImageUNet):
        raise InputError(f"{path}: no image model in Stable Diffusion's layout, of which alone a LoRA is made")
    return network


def _same_text(one: Opened, other: Opened) -> bool:
    first, second = (
        opened.networks[TEXT_ENCODER].state_dict() if TEXT_ENCODER in opened.networks else {} for opened in (one, other)
    )
    # A bundle keeps half precision.
    return first.keys() == second.keys() and all(torch.equal(first[key].half(), second[key].half()) for key in first)
