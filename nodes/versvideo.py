"""VersVideo: what its parts do for other models too."""

from . import folders
from .api import io

CATEGORY = "Weft/VersVideo"


class TemporalVAE(io.ComfyNode):
    """A temporal decoder for an image VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftTemporalVAE",
            display_name="Temporal VAE (Weft)",
            category=CATEGORY,
            description="Decodes the frames of a video together instead of one by one, so that they flicker less: "
            "VersVideo's temporal compensation around the image VAE of any model. Encoding stays as it is.",
            search_aliases=["tcm", "flicker", "temporal decoder", "versvideo", "weft"],
            inputs=[
                io.Vae.Input("vae", tooltip="Image VAE of the model, or one that takes videos frame by frame."),
                io.Combo.Input(
                    "temporal_vae",
                    options=folders.choices("vae"),
                    tooltip="Temporal decoder: file in models/vae, models/weft, or one that comes with the pack. It "
                    "belongs to the VAE that it was trained with.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Where frames lie in the batch (AnimateDiff, HARIVO): frames of a video. 0: the whole "
                    "batch is one video. Latents with a time axis know it themselves.",
                ),
                io.Int.Input(
                    "frames_at_once",
                    default=16,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="Frames of a video that are decoded together. Fewer need less memory and more time; the "
                    "result is the same.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="For VAE Decode and VAE Decode (Tiled).")],
        )

    @classmethod
    def fingerprint_inputs(cls, temporal_vae: str, **kwargs: object) -> str:
        """The file's date and size."""
        return folders.stamp(temporal_vae, "vae")

    @classmethod
    def execute(cls, vae: object, temporal_vae: str, frames: int, frames_at_once: int) -> io.NodeOutput:
        """Read the file, wrap the VAE."""
        from ..model_loaders.bridge.temporal_vae import temporal_vae as with_temporal_decoder

        path = folders.find(temporal_vae, "vae")
        return io.NodeOutput(with_temporal_decoder(vae, path, frames, frames_at_once))


NODES: list[type[io.ComfyNode]] = []
# Not offered yet: a node becomes part of the pack (`NODES`) with a workflow that runs it.
HELD_BACK = [TemporalVAE]
