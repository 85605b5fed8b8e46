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


class LoadVersVideoControl(io.ComfyNode):
    """VersVideo's ControlNet from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLoadVersVideoControl",
            display_name="Load VersVideo ControlNet (Weft)",
            category="Weft/loaders",
            description="Loads VersVideo's one ControlNet for images, Canny edges, HED edges and depth.",
            search_aliases=["controlnet", "versvideo", "union", "weft"],
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=folders.choices("controlnet"),
                    tooltip="File in models/controlnet, models/weft, or one that comes with the pack.",
                ),
            ],
            outputs=[io.ControlNet.Output(display_name="CONTROL_NET", tooltip="For VersVideo Condition Type.")],
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str) -> str:
        """The file's date and size."""
        return folders.stamp(control_net_name, "controlnet")

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        """Read the file."""
        from ..model_loaders.bridge.unified_control import load_unified_control

        return io.NodeOutput(load_unified_control(folders.find(control_net_name, "controlnet")))


class VersVideoConditionType(io.ComfyNode):
    """What the maps of a ControlNet are of."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftVersVideoConditionType",
            display_name="VersVideo Condition Type (Weft)",
            category=CATEGORY,
            description="Between Load VersVideo ControlNet and Apply ControlNet: says what the images are, so that the "
            "right adapter reads them. Use one of these, and one Apply ControlNet, for each condition.",
            search_aliases=["controlnet", "union type", "canny", "depth", "hed", "versvideo", "weft"],
            inputs=[
                io.ControlNet.Input("control_net", tooltip="From Load VersVideo ControlNet."),
                io.Combo.Input(
                    "condition",
                    options=["image", "canny", "hed", "depth", "other"],
                    default="canny",
                    tooltip="What the images are. 'image': pictures to be animated; 'other': what the field below "
                    "names.",
                ),
                io.String.Input(
                    "other",
                    default="",
                    advanced=True,
                    tooltip="Name of another adapter that the file has, where condition is 'other'.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="CONTROL_NET",
                    tooltip="For Apply ControlNet, with one image for each frame or a single one for all.",
                )
            ],
        )

    @classmethod
    def execute(cls, control_net: object, condition: str, other: str) -> io.NodeOutput:
        """Choose in a copy."""
        from ..model_loaders.bridge.unified_control import with_condition

        return io.NodeOutput(with_condition(control_net, other if condition == "other" else condition))


class VersVideoStyle(io.ComfyNode):
    """The style of an image beside a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftVersVideoStyle",
            display_name="VersVideo Style (Weft)",
            category=CATEGORY,
            description="Adds the style of an image to both prompts: tokens made of its CLIP embedding, behind those "
            "of the text. VersVideo's model and its ControlNet read them as text.",
            search_aliases=["style", "image prompt", "versvideo", "weft"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="Prompt, by the model's CLIP."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it gets the tokens of no image."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output", tooltip="One image, from CLIP Vision Encode with CLIP ViT-L/14."
                ),
                io.Combo.Input(
                    "style_name",
                    options=folders.choices("style_models"),
                    tooltip="Style adapter: file in models/style_models, models/weft, or one that comes with the pack. "
                    "A file of VersVideo's ControlNet may hold it too.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With the style of the image."),
                io.Conditioning.Output(display_name="negative", tooltip="With the style of none."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, style_name: str, **kwargs: object) -> str:
        """The file's date and size."""
        return folders.stamp(style_name, "style_models")

    @classmethod
    def execute(cls, positive: list, negative: list, clip_vision_output: object, style_name: str) -> io.NodeOutput:
        """Read the file, add the tokens."""
        from ..model_loaders.bridge.style import load_style, with_style

        adapter = load_style(folders.find(style_name, "style_models"))
        styled = with_style(adapter, positive, clip_vision_output.image_embeds)  # type: ignore[attr-defined]
        return io.NodeOutput(styled, with_style(adapter, negative, None))


NODES: list[type[io.ComfyNode]] = []
# Not offered yet: a node becomes part of the pack (`NODES`) with a workflow that runs it.
HELD_BACK = [TemporalVAE, LoadVersVideoControl, VersVideoConditionType, VersVideoStyle]
