"""Stands in for downloads on the test server: small files of their names with random weights, and a text encoder.

ComfyUI's own loaders read the files of networks whose size the weights say. Text encoders have a fixed size, so that
one of a file's kind cannot be small: its loader is replaced in the graph by the node below.
"""

from pathlib import Path

import folder_paths
import torch
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.ops import disable_weight_init
from safetensors.torch import save_file

TEXT_WIDTH = 4096  # of UMT5-XXL, which Wan reads


def wan() -> torch.nn.Module:
    """Wan 2.1 text to video with one block and one head."""
    return WanModel(dim=128, ffn_dim=64, num_heads=1, num_layers=1, operations=disable_weight_init, device="cpu")


def wan_vae() -> torch.nn.Module:
    """Wan 2.1's video autoencoder with few channels."""
    return WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])


def text_encoder() -> torch.nn.Module:
    """A file to choose, of which nothing is read."""
    return torch.nn.Linear(1, 1)


FILES = {
    ("diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors"): wan,
    ("text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"): text_encoder,
    ("vae", "wan_2.1_vae.safetensors"): wan_vae,
}


def write(path: Path, network: torch.nn.Module) -> None:
    """Save random weights that keep the size of what passes through them."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, weight in network.state_dict().items():
        spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        centre = 1.0 if "norm" in name or name.endswith("gamma") else 0.0
        weights[name] = centre + spread * torch.randn(weight.shape, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)


class Text:
    """What *CLIP Text Encode* asks of a CLIP: every text has random tokens of its own."""

    def tokenize(self, text: str) -> str:
        """The text itself."""
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        """Conditioning of eight tokens."""
        generator = torch.Generator().manual_seed(sum(text.encode()))
        return [[torch.randn(1, 8, TEXT_WIDTH, generator=generator), {}]]


class TextEncoder:
    """In the place of *Load CLIP*."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """None."""
        return {"required": {}}

    def load(self) -> tuple:
        """The stand-in."""
        return (Text(),)


for (folder, file), make in FILES.items():
    write(Path(folder_paths.get_folder_paths(folder)[0], file), make())

NODE_CLASS_MAPPINGS = {"StandInCLIPLoader": TextEncoder}
