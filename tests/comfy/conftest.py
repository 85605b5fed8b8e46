"""A real ComfyUI in this process, with the pack loaded from a custom_nodes folder."""

import asyncio
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class InProcess:
    """ComfyUI after its start: `base` holds its user folders, `package` is the name the pack was imported under."""

    base: Path
    package: str
    mappings: dict[str, type]

    def ours(self, name: str) -> ModuleType:
        """A module of the pack as ComfyUI has imported it."""
        return importlib.import_module(f".{name}", self.package)

    def run(self, node: str, **inputs: object) -> tuple:
        """Execute a node, ours or a stock one; what is not given has its default."""
        kind = self.mappings[node]
        described = kind.INPUT_TYPES()
        described = {**described.get("required", {}), **described.get("optional", {})}
        defaults = {
            name: entry[1]["default"] for name, entry in described.items() if len(entry) > 1 and "default" in entry[1]
        }
        result = getattr(kind(), kind.FUNCTION)(**{**defaults, **inputs})
        return result if isinstance(result, tuple) else getattr(result, "result", result)

    def saved(self, folder: str, name: str) -> str:
        """Move what a save node has written to where the loaders look; gives the file's name there."""
        source = next((self.base / "output").rglob(f"{name}*.safetensors"))
        target = self.base / "models" / folder
        target.mkdir(exist_ok=True)
        shutil.move(source, target / f"{name}.safetensors")
        return f"{name}.safetensors"


@pytest.fixture(scope="session")
def comfy(
    root: Path, comfyui_folder: Path, toy_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcess]:
    """ComfyUI on the CPU, its folders in a temporary one, with its own extra nodes and the pack."""
    from weft.tools.server import PACK, make_base

    base = tmp_path_factory.mktemp("comfy")
    make_base(base, root)
    shutil.copytree(toy_models, base / "models" / "checkpoints")
    sys.path.insert(0, str(comfyui_folder))
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(base)
    importlib.import_module("utils.extra_config")  # first, as in main.py: `nodes` puts another `utils` on the path
    import server

    import nodes

    pack = base / "custom_nodes" / PACK

    async def load() -> bool:
        server.PromptServer(asyncio.get_running_loop())
        await nodes.init_builtin_extra_nodes()
        return await nodes.load_custom_node(str(pack))

    assert asyncio.run(load()), "ComfyUI could not load the pack"
    yield InProcess(base, str(pack).replace(".", "_x_"), nodes.NODE_CLASS_MAPPINGS)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Nodes run in inference mode."""
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Toy:
    """The small text-to-video model as the loader gives it, with two encoded prompts."""

    model: object
    clip: object
    vae: object
    positive: list
    negative: list


@pytest.fixture
def toy(comfy: InProcess) -> Toy:
    """Loaded anew for every test, so that no test sees another's patches."""
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors")
    encoded = [comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", "")]
    return Toy(model, clip, vae, *encoded)


@pytest.fixture
def sample(comfy: InProcess, toy: Toy) -> Callable[..., Tensor]:
    """Sample by the stock KSampler from an empty latent of 16 frames of 64 x 64; gives LATENT's samples."""

    def run(model: object = toy.model, **changed: object) -> Tensor:
        inputs = {
            "latent_image": comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=16)[0],
            "positive": toy.positive,
            "negative": toy.negative,
            **{"seed": 5, "steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            **changed,
        }
        return comfy.run("KSampler", model=model, **inputs)[0]["samples"]

    return run


@pytest.fixture
def image_vae(comfy):
    """A small image VAE with random weights, by ComfyUI's own detection."""
    from comfy.sd import VAE
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    weights = {name: torch.randn(tensor.shape) for name, tensor in TAESD(latent_channels=4).state_dict().items()}
    weights = {name: tensor * max(1, tensor[0].numel()) ** -0.5 for name, tensor in weights.items() if tensor.ndim}
    vae = VAE(sd=weights)
    assert vae.latent_dim == 2
    return vae


@pytest.fixture
def tiny_networks(comfy: InProcess) -> Callable[[str], tuple]:
    """Loads a tiny HiGen or ModelScope from a file of its weights alone; gives MODEL and the network."""
    from safetensors.torch import save_file

    from weft.kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig

    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (1,)}
    small |= {"head_width": 8, "context_width": 24}
    kinds = {
        "higen": lambda: HiGenUNet(HiGenUNetConfig(**small, text_width=20, resampled_tokens=5)),
        "modelscope": lambda: SpaceTimeUNet(SpaceTimeUNetConfig(**small)),
    }

    def load(kind: str) -> tuple:
        torch.manual_seed(0)
        with torch.inference_mode(False):
            network = kinds[kind]().eval()
            folder = comfy.base / "models" / "diffusion_models"
            folder.mkdir(exist_ok=True)
            save_file(network.state_dict(), folder / f"tiny_{kind}.safetensors")
        model = comfy.run("WeftLoadDiffusionModel", model_name=f"tiny_{kind}.safetensors", dtype="fp32")[0]
        return model, network

    return load


def core_model(kind, **config):
    """A small model of the core with random weights, in float32."""
    from comfy import supported_models
    from comfy.model_patcher import ModelPatcher

    described = getattr(supported_models, kind)(config)
    described.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = described.get_model({}, "", device="cpu").eval()
        for weight in model.parameters():
            weight.requires_grad_(False).normal_(0.0, 0.1)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def stable_diffusion():
    """Stable Diffusion 1.5 in the widths 32, 32, 64, 64, reading text of width 12."""
    levels = {"channel_mult": [1, 1, 2, 2], "num_res_blocks": [2, 2, 2, 2], "transformer_depth_middle": 1}
    levels |= {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}
    sizes = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": 12}
    sizes |= {"use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": False}
    return core_model("SD15", **levels, **sizes, adm_in_channels=None, use_temporal_attention=False)


def wan():
    """Flow, 5-D latents."""
    sizes = {"dim": 96, "ffn_dim": 64, "num_heads": 2, "num_layers": 1, "text_dim": 12, "freq_dim": 32, "text_len": 8}
    return core_model("WAN21_T2V", image_model="wan2.1", model_type="t2v", **sizes), (1, 16, 5, 8, 8)


def cogvideo():
    """Velocity and zero terminal SNR, 5-D latents."""
    sizes = {"num_attention_heads": 3, "attention_head_dim": 64, "time_embed_dim": 32, "text_embed_dim": 12}
    sizes |= {"num_layers": 1, "sample_width": 8, "sample_height": 8, "sample_frames": 17}
    return core_model("CogVideoX_T2V", image_model="cogvideox", **sizes), (1, 16, 5, 8, 8)


def ltxv():
    """Flow with a noise level for each latent, 5-D latents of 8 frames."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 12}
    return core_model("LTXV", image_model="ltxv", num_layers=1, **sizes), (1, 128, 5, 2, 2)


def images():
    """Noise, frames in the batch."""
    return stable_diffusion(), (6, 4, 8, 8)


@pytest.fixture
def core_models(comfy: InProcess) -> dict[str, Callable[[], tuple]]:
    """Makers of small models of the core, each with the shape of a latent."""
    return {"wan": wan, "cogvideo": cogvideo, "ltxv": ltxv, "images": images}


class Interruption:
    """Asks ComfyUI to stop before a call of a network, counted from where it is opened."""

    def __init__(self) -> None:
        self.calls, self.left = 0, 0

    def look(self, executor: Callable, *args: object, **kwargs: object) -> object:
        """A DIFFUSION_MODEL wrapper."""
        from comfy import model_management

        self.calls, self.left = self.calls + 1, self.left - 1
        if self.left == 0:
            model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    @contextmanager
    def __call__(self, call: int) -> Iterator[None]:
        """What is run inside is interrupted at this call of the network, and raises."""
        from comfy import model_management

        self.left = call
        with pytest.raises(model_management.InterruptProcessingException):
            yield
        assert self.left <= 0


@pytest.fixture
def interrupting(comfy: InProcess) -> Callable[[object], tuple[object, Interruption]]:
    """A clone of a MODEL that can be interrupted, and how."""

    def make(model: object) -> tuple[object, Interruption]:
        from comfy.patcher_extension import WrappersMP

        clone, interruption = model.clone(), Interruption()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "interrupt", interruption.look)
        return clone, interruption

    return make
