"""Guidance for any model."""

from .api import io

CATEGORY = "Weft/guidance"


class MitigatingGradientGuidance(io.ComfyNode):
    """Neighbouring frames drawn together while they are sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftMitigatingGradient",
            display_name="Mitigating Gradient Guidance (Weft)",
            category=CATEGORY,
            description="Calmer videos of any model, without an extra model call: at every step each frame is drawn "
            "towards its neighbour where the two differ little (HARIVO, Algorithm 1). Cuts stay.",
            search_aliases=["mg", "flicker", "temporal consistency", "harivo", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Any model that makes videos."),
                io.Float.Input(
                    "alpha",
                    default=40.0,
                    min=0.0,
                    max=10_000.0,
                    step=1.0,
                    tooltip="Strength: 40 to 50 in the paper; from about 150 on motion freezes. 0: off.",
                ),
                io.Combo.Input(
                    "strength",
                    options=["per frame", "per element"],
                    default="per frame",
                    tooltip="'per frame' as in the paper, whose latents have 4 x 32 x 32 values: larger ones feel less "
                    "of it. 'per element': alpha means the same at every latent size.",
                ),
                io.Combo.Input(
                    "form",
                    options=["algorithm", "exact"],
                    default="algorithm",
                    tooltip="'algorithm' moves the later frame of each pair, as printed. 'exact' is the whole gradient "
                    "and moves both.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="For models with frames in the batch (AnimateDiff, SVD): frames of a video. 0: the whole "
                    "batch is one video. Latents with a time axis do not need it.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling it begins; 0: at pure noise.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where it ends; 1: at the last step.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="For any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        alpha: float,
        strength: str,
        form: str,
        frames: int,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        """Patch a clone."""
        from ..model_loaders.bridge.guidance import mitigating_gradient

        per_element = strength == "per element"
        return io.NodeOutput(mitigating_gradient(model, alpha, form, per_element, frames, start_percent, end_percent))


class GuidanceSchedule(io.ComfyNode):
    """A guidance scale that changes while sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftGuidanceSchedule",
            display_name="Guidance Schedule (Weft)",
            category=CATEGORY,
            description="The guidance scale (cfg) as a function of how far the sampling is; it takes the place of the "
            "sampler's cfg. HARIVO guides by 12.5 in the first 30 % and by 7.5 after.",
            search_aliases=["cfg schedule", "dynamic cfg", "harivo", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                io.String.Input(
                    "points",
                    default="0: 12.5, 0.3: 7.5",
                    tooltip="Pairs of position and scale. Positions go from 0, pure noise, to 1, the end, as the "
                    "percents of other nodes do.",
                ),
                io.Combo.Input(
                    "between",
                    options=["steps", "lines"],
                    default="steps",
                    tooltip="'steps': a scale holds until the next point. 'lines': straight lines between the points.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="For a sampler with one scale, such as KSampler.")],
        )

    @classmethod
    def execute(cls, model: object, points: str, between: str) -> io.NodeOutput:
        """Patch a clone."""
        from ..model_loaders.bridge.guidance import guidance_schedule

        return io.NodeOutput(guidance_schedule(model, points, between == "steps"))


NODES = [MitigatingGradientGuidance, GuidanceSchedule]
