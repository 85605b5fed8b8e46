"""HiGen: a picture first, then its motion, steered by two factors."""

from .api import io

CATEGORY = "Weft/HiGen"
ContentType = io.Custom("WEFT_HIGEN_CONTENT")


class HiGenSpatialReasoning(io.ComfyNode):
    """The model as a maker of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftHiGenSpatialReasoning",
            display_name="HiGen Spatial Reasoning (Weft)",
            category=CATEGORY,
            description="HiGen's first step: one frame from text, with any sampler. The sampled latent is the spatial "
            "prior of HiGen Temporal Reasoning; decode it to see the picture before it moves.",
            search_aliases=["higen", "spatial prior", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="A HiGen model."),
                io.Int.Input(
                    "width",
                    default=448,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Width in pixels; the released model was trained on 448.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Height in pixels; the released model was trained on 256.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of pictures."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For a sampler, with the LATENT beside it."),
                io.Latent.Output(display_name="LATENT", tooltip="Zeros, one frame per picture."),
            ],
        )

    @classmethod
    def execute(cls, model: object, width: int, height: int, batch_size: int) -> io.NodeOutput:
        """Take cues off, make a latent of one frame."""
        from ..model_loaders.bridge.higen import spatial_reasoning

        return io.NodeOutput(*spatial_reasoning(model, width, height, batch_size))


class HiGenContent(io.ComfyNode):
    """Cues by wish."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftHiGenContent",
            display_name="HiGen Content (Weft)",
            category=CATEGORY,
            description="How much the video moves and how much what it shows changes, for HiGen Temporal Reasoning.",
            search_aliases=["motion factor", "appearance factor", "higen", "weft"],
            inputs=[
                io.String.Input(
                    "motion",
                    default="500",
                    tooltip="Motion factor: a number, or a curve such as '0: 300, 16: 600' (frame: factor, straight "
                    "lines between). 300 to 600 is usual, 500 the release's default.",
                ),
                io.Float.Input(
                    "appearance",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Appearance factor: how much the content differs between the first and the last frame. "
                    "0 to 1 is usual, 1 the release's default.",
                ),
                io.Int.Input(
                    "frames",
                    default=32,
                    min=2,
                    max=4096,
                    tooltip="Length of the video. Released models know 32; other lengths go beyond the paper: the same "
                    "change over the whole video, read at more or fewer places.",
                ),
            ],
            outputs=[ContentType.Output(display_name="CONTENT", tooltip="For HiGen Temporal Reasoning.")],
        )

    @classmethod
    def validate_inputs(cls, motion: str | None = None) -> bool | str:
        """Refuse a curve that cannot be read before anything runs."""
        from ..kernels.sampling.curves import parse_curve

        if motion is not None:
            try:
                parse_curve(motion)
            except ValueError as error:
                return f"motion: {error}"
        return True

    @classmethod
    def execute(cls, motion: str, appearance: float, frames: int) -> io.NodeOutput:
        """Eq. 4 and the curve."""
        from ..kernels.analysis.content import designed_content
        from ..kernels.sampling.curves import parse_curve

        return io.NodeOutput(designed_content(frames, parse_curve(motion), appearance))


class HiGenContentFromVideo(io.ComfyNode):
    """Cues by example."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftHiGenContentFromVideo",
            display_name="HiGen Content From Video (Weft)",
            category=CATEGORY,
            description="Measures how a clip moves and changes, so that another video can move and change like it.",
            search_aliases=["motion from video", "higen", "reference clip", "weft"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="The frames of the clip, at least two. 8 frames a second, as trained."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the HiGen model: motion is measured between its latents."),
                io.Model.Input("model", tooltip="The HiGen model; only its latent scale is read."),
                io.Combo.Input(
                    "similarity",
                    options=["released", "cosine", "colours"],
                    default="released",
                    tooltip="'released': 5 cos - 4, made for CLIP features. 'cosine': the paper's, for DINO. "
                    "'colours': how much colour there is, as the embedded model learned it; needs no image encoder.",
                ),
                io.Int.Input(
                    "frames",
                    default=32,
                    min=0,
                    max=4096,
                    tooltip="Length of the video to make: a longer clip is measured at as many frames, a shorter one "
                    "is stretched. 0: the clip's own length. Released models know 32; others go beyond the paper.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="An image encoder for 'released' and 'cosine': CLIP ViT-H for the released models, DINO as "
                    "the paper prefers.",
                ),
            ],
            outputs=[
                ContentType.Output(display_name="CONTENT", tooltip="For HiGen Temporal Reasoning."),
                io.Image.Output(
                    display_name="PLOT",
                    tooltip="Motion over time, similarity of all pairs of frames, and the clip's middle row over time.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, images: object, vae: object, model: object, similarity: str, frames: int, clip_vision: object = None
    ) -> io.NodeOutput:
        """Encode with both, measure, draw."""
        from ..model_loaders.bridge.higen import measured_content

        content, picture = measured_content(model, images, vae, similarity, frames, clip_vision)
        return io.NodeOutput(content, picture)


class HiGenTemporalReasoning(io.ComfyNode):
    """The model as an animator of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftHiGenTemporalReasoning",
            display_name="HiGen Temporal Reasoning (Weft)",
            category=CATEGORY,
            description="HiGen's second step: a video around a picture, its motion and change steered by the content "
            "cues. Sample the MODEL on the LATENT beside it with any sampler; the prompt may differ from the "
            "picture's.",
            search_aliases=["higen", "animate image", "image to video", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="A HiGen model."),
                io.Latent.Input(
                    "prior",
                    tooltip="The picture: the latent of HiGen Spatial Reasoning, or any image encoded by the VAE.",
                ),
                ContentType.Input("content", tooltip="From HiGen Content or HiGen Content From Video."),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="With picture and cues in it, for both branches of guidance."
                ),
                io.Latent.Output(display_name="LATENT", tooltip="Zeros, a video for each picture."),
            ],
        )

    @classmethod
    def execute(cls, model: object, prior: dict[str, object], content: object) -> io.NodeOutput:
        """Put the cues in, make a latent."""
        from ..model_loaders.bridge.higen import temporal_reasoning

        return io.NodeOutput(*temporal_reasoning(model, prior, content))


NODES = [HiGenSpatialReasoning, HiGenContent, HiGenContentFromVideo, HiGenTemporalReasoning]
