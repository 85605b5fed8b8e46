"""HARIVO and AnimateDiff: Stable Diffusion 1.5 made to move."""

from . import folders
from .api import io

CATEGORY = "Weft/HARIVO"
MotionType = io.Custom("WEFT_MOTION")


class LoadMotion(io.ComfyNode):
    """Motion modules from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLoadMotion",
            display_name="Load Motion (Weft)",
            category="Weft/loaders",
            description="Loads what makes Stable Diffusion 1.5 move: HARIVO files, and AnimateDiff's motion modules "
            "(v1, v2, v3) as they were released.",
            search_aliases=["animatediff", "motion module", "harivo", "weft"],
            inputs=[
                io.Combo.Input(
                    "motion",
                    options=folders.choices(folders.MOTION),
                    tooltip="File in models/animatediff_models or models/weft, or one that comes with the pack.",
                ),
            ],
            outputs=[MotionType.Output(display_name="MOTION", tooltip="For HARIVO Apply.")],
        )

    @classmethod
    def fingerprint_inputs(cls, motion: str) -> str:
        """The file's date and size."""
        return folders.stamp(motion, folders.MOTION)

    @classmethod
    def execute(cls, motion: str) -> io.NodeOutput:
        """Read the file."""
        from ..model_loaders.bridge.motion import load_motion

        return io.NodeOutput(load_motion(folders.find(motion, folders.MOTION)))


class HarivoApply(io.ComfyNode):
    """An image model becomes a video model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftHarivoApply",
            display_name="HARIVO Apply (Weft)",
            category=CATEGORY,
            description="Makes any Stable Diffusion 1.5 model a video model: a batch of latents becomes the frames of "
            "a video. Its weights stay as they are, so that checkpoints, LoRA and ControlNet work unchanged.",
            search_aliases=["animatediff", "motion module", "harivo", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Diffusion 1.5 or anything based on it."),
                MotionType.Input("motion", tooltip="From Load Motion."),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Frames of a video. 0: the whole batch is one video; otherwise the batch holds several.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=["of the motion", "of the image model"],
                    default="of the motion",
                    tooltip="Noise levels: those that the motion was trained with, or the image model's own.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip="For any sampler, with an empty latent whose batch size is the frames.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: object, motion: object, frames: int, schedule: str) -> io.NodeOutput:
        """Wrap a clone."""
        from ..model_loaders.bridge.motion import apply_motion

        return io.NodeOutput(apply_motion(model, motion, frames, schedule == "of the motion"))


class ControlNetOnFrames(io.ComfyNode):
    """A ControlNet for some of the frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftControlNetOnFrames",
            display_name="ControlNet on Chosen Frames (Weft)",
            category=CATEGORY,
            description="Between Load ControlNet Model and Apply ControlNet: hints for some frames of a video, such as "
            "its first and last; the others are left free. Costs what the chosen frames cost.",
            search_aliases=["keyframes", "sparse control", "controlnet", "weft"],
            inputs=[
                io.ControlNet.Input("control_net", tooltip="Any ControlNet for the image model."),
                io.String.Input(
                    "frames",
                    default="0, 15",
                    tooltip="Numbers of the frames, from 0, in the order of the hint images of Apply ControlNet.",
                ),
                io.Int.Input(
                    "video_frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Frames of a video, as in HARIVO Apply. 0: the whole batch is one video.",
                ),
            ],
            outputs=[io.ControlNet.Output(display_name="CONTROL_NET", tooltip="For Apply ControlNet.")],
        )

    @classmethod
    def execute(cls, control_net: object, frames: str, video_frames: int) -> io.NodeOutput:
        """Wrap a copy."""
        from ..model_loaders.bridge.chosen_frames import control_on_frames

        return io.NodeOutput(control_on_frames(control_net, frames, video_frames))


NODES = [LoadMotion, HarivoApply, ControlNetOnFrames]
