"""Samplers as the papers released them."""

from .api import io

CATEGORY = "Weft/sampling"


class ReleaseSampler(io.ComfyNode):
    """SAMPLER and SIGMAS of the release that a model comes from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftReleaseSampler",
            display_name="Release Sampler (Weft)",
            category=CATEGORY,
            description="Reproduces the sampler that was released with the model, for SamplerCustomAdvanced. Its "
            "DDIM starts at timestep 981 of 1000 (50 steps), counts its timesteps from one and ends at the first noise "
            "level instead of zero. All other samplers and schedulers of ComfyUI work with these models as well.",
            search_aliases=["ddim", "lvdm sampler", "ancestral", "show-1 sampler", "thresholding", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="A model loaded by this pack; its noise schedule is read."),
                io.Combo.Input(
                    "kind",
                    options=["ddim", "ancestral", "dpm-solver++"],
                    default="ddim",
                    tooltip="'ddim': few steps. 'ancestral': every step of the schedule (1000), as LVDM's short videos "
                    "were evaluated; 'steps' and 'eta' are then not used. 'dpm-solver++': Show-1, whose stages on "
                    "pixels are thresholded frame by frame; 'eta' is not used.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=500,
                    tooltip="Of DDIM, where some numbers give one more step than asked or have no released grid, or of "
                    "DPM-Solver++: Show-1 takes 75 for keyframes and between them, 125 and 50 for higher resolution.",
                ),
                io.Float.Input(
                    "eta",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Noise added at every DDIM step: 0 none, 1 as much as ancestral sampling. Below 0: as the "
                    "model was released, which is 1 for LVDM and 0 for HiGen and ModelScope.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps that is done, counted from the end; below 1 for video to video.",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="SAMPLER", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(display_name="SIGMAS", tooltip="Noise levels that belong to it."),
            ],
        )

    @classmethod
    def execute(cls, model: object, kind: str, steps: int, eta: float, denoise: float) -> io.NodeOutput:
        """Read the schedule of the model's checkpoint."""
        from ..model_loaders.bridge.model import checkpoint_of, threshold_of
        from ..model_loaders.bridge.sampling import release_sampler

        schedule = checkpoint_of(model).schedule
        return io.NodeOutput(*release_sampler(schedule, kind, steps, eta, denoise, threshold_of(model)))


NODES = [ReleaseSampler]
