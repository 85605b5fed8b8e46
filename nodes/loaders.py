"""Loaders: a file becomes MODEL, CLIP and VAE."""

from ..model_loaders.checkpoint import VAE, ReadOptions, families, read
from . import folders
from .api import io

CATEGORY = "Weft/loaders"
_DTYPES = ["default", "fp32", "fp16", "bf16", "fp8_e4m3fn"]


def _scaling_input() -> io.Combo.Input:
    names = [name for family in families() for name in family.scalings]
    return io.Combo.Input(
        "scaling",
        display_name="latent scaling",
        options=["auto", *names],
        default="auto",
        tooltip="Scale and shift between the autoencoder's latents and the model's. LVDM's released files do not "
        "contain them: choose the data set the model was trained on. 'auto' takes them from the file's description or "
        "its name.",
    )


def _weights_input() -> io.Combo.Input:
    return io.Combo.Input(
        "weights",
        options=["training", "averaged"],
        default="training",
        tooltip="Which copy of the weights to take from a training checkpoint. LVDM's scripts use 'training' for short "
        "videos and 'averaged' (EMA) for long ones. A file that has no averaged copy says so.",
    )


def _dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "dtype",
        options=_DTYPES,
        default="default",
        advanced=True,
        tooltip="Precision of the model's weights in memory; 'default' lets ComfyUI choose for your device.",
    )


def _read_options(weights: str, scaling: str) -> ReadOptions:
    return ReadOptions(ema=weights == "averaged", scaling=scaling)


class LoadCheckpoint(io.ComfyNode):
    """One file with everything in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLoadCheckpoint",
            display_name="Load Checkpoint (Weft)",
            category=CATEGORY,
            description="Loads a text-to-video checkpoint that contains a model, a text encoder and a VAE. "
            "The kind of model is found out from the file.",
            search_aliases=["lvdm", "video checkpoint", "weft"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.choices("checkpoints"),
                    tooltip="File in models/checkpoints or models/weft, folder in models/diffusers, or one of the "
                    "small models that come with the pack.",
                ),
                _weights_input(),
                _scaling_input(),
                _dtype_input(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The denoiser, for any sampler."),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="Its text encoder; for models that are not made for text one that knows no words.",
                ),
                io.Vae.Output(display_name="VAE", tooltip="Its autoencoder, for latents with a time axis."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **kwargs: str) -> str:
        """The file's date and size."""
        return folders.stamp(checkpoint, "checkpoints")

    @classmethod
    def execute(cls, checkpoint: str, weights: str, scaling: str, dtype: str) -> io.NodeOutput:
        """Read the file once, make three objects."""
        from ..model_loaders.bridge.bundle import load_checkpoint

        path = folders.find(checkpoint, "checkpoints")
        return io.NodeOutput(*load_checkpoint(path, _read_options(weights, scaling), dtype))


class LoadDiffusionModel(io.ComfyNode):
    """The denoiser alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLoadDiffusionModel",
            display_name="Load Diffusion Model (Weft)",
            category=CATEGORY,
            description="Loads only the denoiser of a file: from a checkpoint, or from a file that holds nothing else.",
            search_aliases=["lvdm", "unet", "weft"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folders.choices("diffusion_models"),
                    tooltip="File in models/diffusion_models, models/weft, or one that comes with the pack.",
                ),
                _weights_input(),
                _scaling_input(),
                _dtype_input(),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The denoiser, for any sampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **kwargs: str) -> str:
        """The file's date and size."""
        return folders.stamp(model_name, "diffusion_models")

    @classmethod
    def execute(cls, model_name: str, weights: str, scaling: str, dtype: str) -> io.NodeOutput:
        """Read the file, make the MODEL."""
        from ..model_loaders.bridge.model import LoadOptions, load_model
        from ..model_loaders.bridge.operations import torch_dtype_of

        path = folders.find(model_name, "diffusion_models")
        return io.NodeOutput(load_model(path, LoadOptions(_read_options(weights, scaling), torch_dtype_of(dtype))))


class LoadVAE(io.ComfyNode):
    """The autoencoder alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLoadVAE",
            display_name="Load VAE (Weft)",
            category=CATEGORY,
            description="Loads only the autoencoder of a file, such as LVDM's 3D autoencoders, which shrink time as "
            "well.",
            search_aliases=["lvdm", "3d autoencoder", "video vae", "weft"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=folders.choices("vae"),
                    tooltip="File in models/vae, models/weft, or one that comes with the pack.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="Autoencoder for latents with a time axis.")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str) -> str:
        """The file's date and size."""
        return folders.stamp(vae_name, "vae")

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        """Read the file, make the VAE."""
        from ..model_loaders.bridge.vae import make_vae

        # The scale of the latents belongs to the MODEL; the VAE works on unscaled latents.
        return io.NodeOutput(make_vae(read(folders.find(vae_name, "vae"), ReadOptions(scaling="none"), [VAE])))


NODES = [LoadCheckpoint, LoadDiffusionModel, LoadVAE]
