"""Stands in for downloads on the test server: small files of their names with random weights, and a text encoder.

Loaders read the files of networks whose size the weights say. Text encoders have a fixed size, so that one of a file's
kind cannot be small: loaders of these are replaced in the graph by the nodes below.
"""

from functools import partial
from pathlib import Path

import folder_paths
import torch
from comfy import supported_models
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy.ops import disable_weight_init
from comfy.sd import VAE
from comfy.taesd.taesd import TAESD
from PIL import Image
from safetensors.torch import save_file

from . import show1

TEXTS = {
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (4096, 8),
    # As ComfyUI's CLIP for LTX-Video pads; the second one is OpenCLIP's.
    "t5xxl_fp16.safetensors": (show1.TEXT_WIDTH, 128),
    "show1_sr2_text_encoder.bin": (show1.EXPERT_TEXT_WIDTH, 77),
}
"""Text encoders: width and number of tokens."""
IMAGE_TEXT_WIDTH, IMAGE_TEXT_LENGTH = 12, 77
LEVELS = (32, 32, 64, 64)
"""Widths of the small image model."""


def wan() -> torch.nn.Module:
    """Wan 2.1 text to video with one block and one head."""
    return WanModel(dim=128, ffn_dim=64, num_heads=1, num_layers=1, operations=disable_weight_init, device="cpu")


def wan_vae() -> torch.nn.Module:
    """Wan 2.1's video autoencoder with few channels."""
    return WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])


def motion() -> dict[str, torch.Tensor]:
    """AnimateDiff's third version for the small image model, by its released names."""
    tensors: dict[str, torch.Tensor] = {}
    for direction, widths, count in (("down", LEVELS, 2), ("up", LEVELS[::-1], 3)):
        for level, width in enumerate(widths):
            for index in range(count):
                place = f"{direction}_blocks.{level}.motion_modules.{index}.temporal_transformer"
                tensors |= {f"{place}.{name}": tensor for name, tensor in motion_module(width).items()}
    return tensors


def motion_module(width: int) -> dict[str, torch.Tensor]:
    """Two attentions over at most 32 frames and a feed-forward layer."""
    block = "transformer_blocks.0"
    shapes: dict[str, tuple[int, ...]] = {}
    for name, outputs, inputs in (
        ("proj_in", width, width),
        (f"{block}.ff.net.0.proj", 8 * width, width),
        (f"{block}.ff.net.2", width, 4 * width),
        ("proj_out", width, width),
        *((f"{block}.attention_blocks.{number}.to_out.0", width, width) for number in range(2)),
    ):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for name in ("norm", f"{block}.norms.0", f"{block}.norms.1", f"{block}.ff_norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for number in range(2):
        place = f"{block}.attention_blocks.{number}"
        shapes |= {f"{place}.to_{part}.weight": (width, width) for part in "qkv"}
        shapes[f"{place}.pos_encoder.pe"] = (1, 32, width)
    return {name: torch.empty(shape) for name, shape in shapes.items()}


def image_vae() -> torch.nn.Module:
    """A small autoencoder of pictures, with latents of Stable Diffusion's."""
    return TAESD(latent_channels=4)


def text_encoder() -> torch.nn.Module:
    """A file to choose, of which nothing is read."""
    return torch.nn.Linear(1, 1)


FILES = {
    ("diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors"): wan,
    **{("text_encoders", name): text_encoder for name in TEXTS},
    ("vae", "wan_2.1_vae.safetensors"): wan_vae,
    ("checkpoints", "v1-5-pruned-emaonly-fp16.safetensors"): text_encoder,
    ("animatediff_models", "v3_sd15_mm.ckpt"): motion,
    ("diffusion_models", "show1_base.bin"): partial(show1.pixel_stage, 3),
    ("diffusion_models", "show1_interpolation.bin"): partial(show1.pixel_stage, 7),
    ("diffusion_models", "show1_sr1.bin"): partial(show1.pixel_stage, 6, upscales=True),
    ("diffusion_models", "if_ii_l.safetensors"): partial(show1.pixel_stage, 6, upscales=True, temporal=False),
    ("diffusion_models", "show1_sr2.bin"): show1.latent_stage,
    ("vae", "show1_sr2_vae.bin"): image_vae,
}


def drawn(shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights of these shapes that keep the size of what passes through them."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, weight in shapes.items():
        spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        centre = 1.0 if "norm" in name or name.endswith("gamma") else 0.0
        weights[name] = centre + spread * torch.randn(weight.shape, generator=generator)
    return weights


def write(path: Path, network: torch.nn.Module | dict[str, torch.Tensor]) -> None:
    """Save random weights in the format that the file's name says."""
    weights = drawn(network if isinstance(network, dict) else network.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)


def stable_diffusion() -> ModelPatcher:
    """Stable Diffusion 1.5 with few channels, reading short tokens."""
    config = {"channel_mult": [1, 1, 2, 2], "num_res_blocks": [2, 2, 2, 2], "transformer_depth_middle": 1}
    config |= {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}
    config |= {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": LEVELS[0], "legacy": False}
    config |= {"use_spatial_transformer": True, "use_linear_in_transformer": False, "use_temporal_attention": False}
    kind = supported_models.SD15({**config, "context_dim": IMAGE_TEXT_WIDTH, "adm_in_channels": None})
    kind.set_inference_dtype(torch.float32, None)
    model = kind.get_model({}, "", device="cpu").eval()
    model.diffusion_model.load_state_dict(drawn(model.diffusion_model.state_dict()))
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


class Text:
    """What *CLIP Text Encode* asks of a CLIP: every text has random tokens of its own."""

    def __init__(self, width: int, tokens: int) -> None:
        self.shape = (1, tokens, width)

    def tokenize(self, text: str) -> str:
        """The text itself."""
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        """Conditioning of these tokens."""
        generator = torch.Generator().manual_seed(sum(text.encode()))
        return [[torch.randn(self.shape, generator=generator), {}]]


class TextEncoder:
    """In the place of *Load CLIP*."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """The file."""
        return {"required": {"clip_name": (list(TEXTS),)}}

    def load(self, clip_name: str) -> tuple:
        """The stand-in."""
        return (Text(*TEXTS[clip_name]),)


class Checkpoint:
    """In the place of *Load Checkpoint*."""

    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """None."""
        return {"required": {}}

    def load(self) -> tuple:
        """A small Stable Diffusion 1.5 with the latents of the real one."""
        return stable_diffusion(), Text(IMAGE_TEXT_WIDTH, IMAGE_TEXT_LENGTH), VAE(drawn(image_vae().state_dict()))


for (folder, file), make in FILES.items():
    # Not asked for: a folder that a pack adds may not be known yet.
    write(Path(folder_paths.models_dir, folder, file), make())

# ComfyUI has this picture in its own input folder.
Image.linear_gradient("L").convert("RGB").save(Path(folder_paths.get_input_directory(), "example.png"))

NODE_CLASS_MAPPINGS = {"StandInCLIPLoader": TextEncoder, "StandInCheckpointLoaderSimple": Checkpoint}
