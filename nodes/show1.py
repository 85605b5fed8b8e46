"""Show-1: keyframes on pixels, frames between them, and higher resolution on pixels and in latents."""

from .api import io

CATEGORY = "Weft/Show-1"


def _text_inputs(encoder: str) -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip=f"The prompt, encoded by {encoder}."),
        io.Conditioning.Input("negative", tooltip="What guidance leads away from; released with an empty prompt."),
    ]


def _walk_inputs(steps: int, cfg: float) -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Of the noise; the same on every device.",
        ),
        io.Int.Input("steps", default=steps, min=1, max=990, tooltip=f"Steps of each sampling; released with {steps}."),
        io.Float.Input(
            "cfg", default=cfg, min=0.0, max=100.0, step=0.1, tooltip=f"Guidance scale; released with {cfg:g}."
        ),
    ]


def _other_walk_inputs() -> list[io.Input]:
    return [
        io.Sampler.Input("sampler", optional=True, tooltip="Instead of the released DPM-Solver++."),
        io.Sigmas.Input(
            "sigmas", optional=True, tooltip="Noise levels instead of the released ones; 'steps' is unused."
        ),
    ]


_T5 = "T5, whose encoder belongs to all of Show-1's stages on pixels"


class Show1Keyframes(io.ComfyNode):
    """The first stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftShow1Keyframes",
            display_name="Show-1 Keyframes (Weft)",
            category=CATEGORY,
            description="Show-1's first stage: a few small frames from text, two for each second, on pixels.",
            search_aliases=["show-1", "show1", "mpl-video", "pixel diffusion", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Show-1's model for keyframes (show-1-base)."),
                *_text_inputs(_T5),
                io.Int.Input("width", default=64, min=8, max=1024, tooltip="In pixels, a multiple of 8."),
                io.Int.Input("height", default=40, min=8, max=1024, tooltip="In pixels, a multiple of 8."),
                io.Int.Input("frames", default=8, min=2, max=1024, tooltip="Keyframes; released models know 8."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of videos."),
                *_walk_inputs(75, 9.0),
                *_other_walk_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The frames as they are handed to the next stage."),
                io.Image.Output(display_name="IMAGE", tooltip="The same to look at."),
            ],
        )

    @classmethod
    def execute(
        cls, model: object, width: int, height: int, frames: int, batch_size: int, **settings: object
    ) -> io.NodeOutput:
        """Sample once."""
        from ..model_loaders.bridge.cascade import Settings, images_of, keyframes

        latent = keyframes(model, Settings(**settings), width, height, frames, batch_size)  # type: ignore[arg-type]
        return io.NodeOutput(latent, images_of(latent))


class Show1Interpolate(io.ComfyNode):
    """The second stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftShow1Interpolate",
            display_name="Show-1 Interpolate (Weft)",
            category=CATEGORY,
            description="Show-1's second stage: three frames between every two keyframes, sampled in windows of five "
            "that begin with the same noise. Takes the keyframes of the first stage or any pictures.",
            search_aliases=["show-1", "show1", "frame interpolation", "inbetween", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Show-1's model for interpolation (show-1-interpolation)."),
                *_text_inputs(_T5),
                io.MultiType.Input(
                    "keyframes",
                    types=[io.Latent, io.Image],
                    tooltip="LATENT of Show-1 Keyframes, or pictures (IMAGE); at least two, sizes in multiples of 8.",
                ),
                *_walk_inputs(75, 4.0),
                io.Combo.Input(
                    "condition",
                    options=["released", "paper"],
                    default="released",
                    tooltip="What stands in the place of unknown frames. 'released': a blend of the keyframes, which "
                    "released weights expect. 'paper': nothing, and noise on the keyframes.",
                ),
                io.Int.Input(
                    "noise_level",
                    default=250,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Of the noise on the keyframes, 0 to 999, with 'paper' alone.",
                ),
                io.Boolean.Input(
                    "keep_keyframes",
                    default=False,
                    tooltip="Put the given keyframes back in their places. Off, as released: they are sampled anew "
                    "with the others, which joins them better.",
                ),
                *_other_walk_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="4(N-1)+1 frames for N keyframes, for the next stage."),
                io.Image.Output(display_name="IMAGE", tooltip="The same to look at."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        keyframes: object,
        condition: str,
        noise_level: int,
        keep_keyframes: bool,
        **settings: object,
    ) -> io.NodeOutput:
        """Sample every window."""
        from ..model_loaders.bridge.cascade import Settings, images_of, interpolation

        chosen, paper = Settings(**settings), condition == "paper"  # type: ignore[arg-type]
        latent = interpolation(model, chosen, keyframes, paper, noise_level, keep_keyframes)
        return io.NodeOutput(latent, images_of(latent))


class Show1SuperResolution(io.ComfyNode):
    """The third stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftShow1SuperResolution",
            display_name="Show-1 Super-Resolution (Weft)",
            category=CATEGORY,
            description="Show-1's third stage: four times the height and width, on pixels, in windows of eight frames "
            "of which each begins with the last one of the window before.",
            search_aliases=["show-1", "show1", "upscale video", "pixel super-resolution", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="Show-1's first super-resolution (show-1-sr1)."),
                *_text_inputs(_T5),
                io.MultiType.Input(
                    "video",
                    types=[io.Latent, io.Image],
                    tooltip="LATENT of Show-1 Interpolate or Keyframes, or frames (IMAGE); sizes in multiples of 4.",
                ),
                *_walk_inputs(125, 7.0),
                io.Int.Input(
                    "noise_level",
                    default=250,
                    min=0,
                    max=999,
                    tooltip="Of the noise on the enlarged frames, which the network is told: the more, the freer it "
                    "is. Released with 250.",
                ),
                io.Boolean.Input(
                    "carry_frame",
                    default=True,
                    advanced=True,
                    tooltip="Give each window the last frame of the one before as it was made. Off: windows are "
                    "independent, with seams between them.",
                ),
                io.Model.Input(
                    "first_frame_model",
                    optional=True,
                    tooltip="DeepFloyd IF-II, which makes the very first frame, as released. Without it the video "
                    "network makes all.",
                ),
                io.Int.Input(
                    "first_frame_steps", default=70, min=1, max=1000, advanced=True, tooltip="Its steps; released 70."
                ),
                io.Float.Input(
                    "first_frame_cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Its guidance scale; released with 4.",
                ),
                io.Int.Input(
                    "first_frame_noise_level",
                    default=150,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Of the noise on the enlarged first frame; released with 150.",
                ),
                *_other_walk_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The frames on pixels, for another stage on pixels."),
                io.Image.Output(display_name="IMAGE", tooltip="The same, for Show-1 Expert Translation or to save."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        video: object,
        noise_level: int,
        carry_frame: bool,
        first_frame_steps: int,
        first_frame_cfg: float,
        first_frame_noise_level: int,
        first_frame_model: object = None,
        **settings: object,
    ) -> io.NodeOutput:
        """Sample the first frame and every window."""
        from ..model_loaders.bridge.cascade import FirstFrame, Settings, images_of, super_resolution

        first = None
        if first_frame_model is not None:
            first = FirstFrame(first_frame_model, first_frame_steps, first_frame_cfg, first_frame_noise_level)
        chosen = Settings(**settings)  # type: ignore[arg-type]
        latent = super_resolution(model, chosen, video, noise_level, carry_frame, first)
        return io.NodeOutput(latent, images_of(latent))


class Show1ExpertTranslation(io.ComfyNode):
    """The last stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftShow1ExpertTranslation",
            display_name="Show-1 Expert Translation (Weft)",
            category=CATEGORY,
            description="Show-1's last stage: enlarges a video, encodes it, adds noise and lets a video model in "
            "latents remove it with new details. Works with any video model: Show-1's second super-resolution, HiGen, "
            "LVDM, the core's.",
            search_aliases=["show-1", "show1", "upscale video", "sdedit", "video to video", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="A video model in latents; released with show-1-sr2."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to it; those of images encode frame by frame."),
                io.Image.Input("images", tooltip="The frames of one video."),
                *_text_inputs("the CLIP that belongs to the model"),
                io.Int.Input("width", default=576, min=16, max=8192, tooltip="Of the result, in pixels."),
                io.Int.Input("height", default=320, min=16, max=8192, tooltip="Of the result, in pixels."),
                *_walk_inputs(50, 15.0),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps that is done, from the end: how much of the video is made anew.",
                ),
                io.Int.Input(
                    "window",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="For long videos: latents along time that the model sees at once, blended by ComfyUI's "
                    "context windows. 0: all, as released for 29 frames.",
                ),
                io.Int.Input("overlap", default=4, min=0, max=4096, tooltip="Latents that two windows share."),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    advanced=True,
                    tooltip="For large frames: width and height in pixels of what the VAE encodes at once. 0: whole.",
                ),
                *_other_walk_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="For VAE Decode, or VAE Decode (Tiled).")],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        vae: object,
        images: object,
        width: int,
        height: int,
        strength: float,
        window: int,
        overlap: int,
        tile: int,
        **settings: object,
    ) -> io.NodeOutput:
        """Enlarge, encode, sample."""
        from ..model_loaders.bridge.cascade import Settings
        from ..model_loaders.bridge.translation import Cut, expert_translation

        chosen, cut = Settings(**settings), Cut(window, overlap, tile)  # type: ignore[arg-type]
        return io.NodeOutput(expert_translation(model, vae, images, chosen, width, height, strength, cut))


NODES = [Show1Keyframes, Show1Interpolate, Show1SuperResolution, Show1ExpertTranslation]
