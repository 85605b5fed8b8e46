"""Latents of videos."""

from .api import io

CATEGORY = "Weft/latent"


class EmptyVideoLatent(io.ComfyNode):
    """Zeros of the right size for a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftEmptyVideoLatent",
            display_name="Empty Video Latent (Weft)",
            category=CATEGORY,
            description="An empty latent for text to video, sized for the connected model: it knows how many pixels "
            "and frames one latent covers, and refuses sizes that the model cannot take.",
            search_aliases=["empty latent video", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled; only its latent format is read."),
                io.Int.Input("width", default=256, min=8, max=8192, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=256, min=8, max=8192, step=8, tooltip="Height in pixels."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Length in frames. LVDM's released models were trained on 16.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of videos."),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="Zeros, (batch, channels, frames, height, width).")
            ],
        )

    @classmethod
    def execute(cls, model: object, width: int, height: int, frames: int, batch_size: int) -> io.NodeOutput:
        """Ask the latent format for the size."""
        from ..model_loaders.bridge.latent import empty_latent

        latent_format = model.get_model_object("latent_format")
        return io.NodeOutput(empty_latent(latent_format, width, height, frames, batch_size))


class FramewiseVAE(io.ComfyNode):
    """An image VAE for videos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftFramewiseVAE",
            display_name="Frame-wise VAE (Weft)",
            category=CATEGORY,
            description="Lets any image VAE (also 'pixel_space') encode and decode latents with a time axis, frame by "
            "frame. Without it the stock decode keeps only the first frame. Tiled decoding works as well.",
            search_aliases=["image vae for video", "5d vae", "pixel_space video", "weft"],
            inputs=[io.Vae.Input("vae", tooltip="An image VAE, such as Stable Diffusion's.")],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="The same weights, for videos.")],
        )

    @classmethod
    def execute(cls, vae: object) -> io.NodeOutput:
        """Wrap; weights are shared."""
        from ..model_loaders.bridge.vae import FramewiseVAE as Wrapped

        return io.NodeOutput(Wrapped(vae))


NODES = [EmptyVideoLatent, FramewiseVAE]
