"""Long videos: any video model goes on from frames that are there, and files of any length."""

import time
from collections.abc import Callable
from pathlib import Path

import folder_paths

from .api import InputImpl, io, ui

CATEGORY = "Weft/long video"
SEGMENTS = "weft_segments"
"""In ComfyUI's output folder: the one for temporary files is emptied at every start."""


def _clear_input() -> io.Input:
    tip = "Remove all windows that are kept under this name before starting."
    return io.Boolean.Input("clear", default=False, optional=True, tooltip=tip)


class ExtendVideo(io.ComfyNode):
    """More frames from any video model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftExtendVideo",
            display_name="Extend Video (Weft)",
            category=CATEGORY,
            description="Makes a video longer with any video model: windows are sampled one after the other, and of "
            "each the first frames are those that are there already. Finished windows are kept on disk, so that the "
            "same graph goes on where an interrupt or a crash has ended it.",
            search_aliases=["long video", "continue video", "autoregressive", "loop", "lvdm", "resume", "weft"],
            inputs=[
                io.Guider.Input("guider", tooltip="Model, texts and scale, as for SamplerCustomAdvanced."),
                io.Sampler.Input("sampler", tooltip="Any sampler."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels of every window."),
                io.Latent.Input(
                    "start",
                    tooltip="The clip that is extended, which is kept exactly. An empty latent gives only the size.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of the noise of all windows."),
                io.Int.Input("frames", default=64, min=1, max=65536, tooltip="Of the whole video, with the start."),
                io.Int.Input(
                    "window", default=16, min=1, max=4096, tooltip="Frames that are sampled at once: the model's own."
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="Frames of a window that are there already: more keep the motion, fewer make the video "
                    "faster. A multiple of the frames that the model puts into a latent.",
                ),
                io.Float.Input(
                    "perturbation",
                    default=0.1,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    tooltip="Share of the noise schedule, at its end, in which a window's view of the frames that are "
                    "there may adapt to the new ones. 0: they are held to the end.",
                ),
                io.Boolean.Input(
                    "loop", default=False, tooltip="Let the last frames lead to the first, for an endless video."
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Texts along the video, one a line: '48: a cat wakes up' holds for windows whose first new "
                    "frame is 48 or later. Before the first line, and without any, the guider's text holds.",
                ),
                io.String.Input(
                    "segments",
                    default="extended",
                    tooltip="Name of the folder in output/weft_segments for finished windows; one for each video that "
                    "you work on. Nothing is kept without a name; see Clear Segments (Weft).",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompts; not needed without any."),
                io.Latent.Input(
                    "end",
                    optional=True,
                    tooltip="A clip that the video leads to and ends with, kept exactly: what is between is made.",
                ),
                _clear_input(),
                io.Float.Input(
                    "head_start",
                    default=0.2,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the noise schedule, at its start, that windows skip: they begin from what is "
                    "given, standing still in noise, so that things keep their places. More: calmer. 0: from noise.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The whole video, for Save Long Video (Weft).")],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        guider: object,
        sampler: object,
        sigmas: object,
        start: dict,
        prompts: str,
        segments: str,
        clip: object = None,
        end: dict | None = None,
        clear: bool = False,
        **settings: object,
    ) -> io.NodeOutput:
        """Plan, and sample what is not on disk."""
        from ..model_loaders.bridge.extension import Extension, extend

        script, kept = script_of(prompts, clip), kept_segments(cls.hidden, segments, clear)
        extension = Extension(**settings)  # type: ignore[arg-type]
        return io.NodeOutput(extend(guider, sampler, sigmas, (start, end), extension, script, kept))


def script_of(prompts: str, clip: object) -> object:
    """The texts along a video.

    Raises:
        ValueError: they cannot be read, or nothing encodes them.
    """
    from ..kernels.sampling.curves import parse_lines
    from ..model_loaders.bridge.extension import Script

    lines = parse_lines(prompts)
    if lines and clip is None:
        raise ValueError("prompts has texts, and nothing encodes them: connect the model's CLIP to clip.")
    return Script(lines, clip)


def kept_segments(hidden: object, name: str, clear: bool) -> Callable[[dict[str, str]], object] | None:
    """Opens the finished segments of a name for the hashes of a node's inputs; None without a name.

    Raises:
        ValueError: as `segments_folder` does.
    """
    from ..model_loaders.bridge.fingerprint import graph_fingerprint
    from ..model_loaders.bridge.segments import Segments
    from ..model_loaders.bridge.segments import clear as remove_all

    folder = segments_folder(name)
    graph = graph_fingerprint(getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None), "clear")

    def opened(inputs: dict[str, str]) -> Segments:
        if clear:
            remove_all(folder)
        return Segments(folder, {"graph": graph, **inputs})

    return opened if folder else None


def segments_folder(name: str) -> Path | None:
    """Where finished segments of this name are kept; None without a name.

    Raises:
        ValueError: the name leads out of the folder of segments.
    """
    if not name.strip():
        return None
    base = Path(folder_paths.get_output_directory(), SEGMENTS).resolve()
    folder = Path(base, name.strip()).resolve()
    if base not in folder.parents:
        raise ValueError(f"segments is '{name}', which leads out of {base}: take a plain name.")
    return folder


class SaveLongVideo(io.ComfyNode):
    """A video file from latents of any length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftSaveLongVideo",
            display_name="Save Long Video (Weft)",
            category=CATEGORY,
            description="Decodes and encodes a long video part by part, straight into an .mp4 (h264) in the output "
            "folder, so that its frames are never all in memory.",
            search_aliases=["export video", "save video", "long video", "vae decode", "weft"],
            inputs=[
                io.Latent.Input("samples", tooltip="Latents of one video."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to them; those of images through Frame-wise VAE."),
                io.Float.Input("fps", default=8.0, min=1.0, max=120.0, step=1.0, tooltip="Frames per second."),
                io.String.Input(
                    "filename_prefix",
                    default="video/long",
                    tooltip="Folder and beginning of the file's name, as in Save Video.",
                ),
                io.Int.Input(
                    "part",
                    default=16,
                    min=2,
                    max=4096,
                    tooltip="Latents along time that are decoded at once: more need more memory.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=4096,
                    tooltip="Latents that two parts share; their frames are blended.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    optional=True,
                    tooltip="For endless videos: the end is decoded with the start behind it, and blends into it.",
                ),
            ],
            outputs=[io.Video.Output(display_name="VIDEO", tooltip="The file, for other nodes.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, samples: dict, vae: object, fps: float, filename_prefix: str, part: int, overlap: int, loop: bool = False
    ) -> io.NodeOutput:
        """Name the file as the core does, and write it."""
        from ..model_loaders.bridge.video_file import Parts, metadata_of, pixel_size, save

        latents = samples["samples"]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), *pixel_size(vae, latents)
        )
        file = f"{name}_{counter:05}_.mp4"
        path = Path(folder, file)
        save(path, vae, latents, Parts(part, overlap, loop), fps, metadata_of(cls.hidden))
        video = InputImpl.VideoFromFile(str(path))
        return io.NodeOutput(video, ui=ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.output)]))


class ClearSegments(io.ComfyNode):
    """Room on the disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftClearSegments",
            display_name="Clear Segments (Weft)",
            category=CATEGORY,
            description="Removes all finished windows that Extend Video keeps under a name, of all graphs that use it. "
            "Connect Save Long Video to it, and they are removed once the video is a file.",
            search_aliases=["delete segments", "free disk", "long video", "weft"],
            inputs=[
                io.String.Input("segments", default="extended", tooltip="The name in Extend Video (Weft)."),
                io.AnyType.Input("after", optional=True, tooltip="Anything that has to be there first."),
            ],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> float:
        """Of every run its own: what is on disk changes."""
        return time.time()

    @classmethod
    def execute(cls, segments: str, after: object = None) -> io.NodeOutput:
        """Remove, and say what."""
        from ..model_loaders.bridge.segments import clear

        folder = segments_folder(segments)
        if folder is None:
            raise ValueError("segments is empty: name what Extend Video (Weft) keeps its windows under.")
        count, size = clear(folder)
        return io.NodeOutput(ui=ui.PreviewText(f"{count} segments removed ({size / 2**20:.1f} MiB)"))


class LongVideo(io.ComfyNode):
    """LVDM's models that are told which latents are given."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftLongVideo",
            display_name="Long Video (Weft)",
            category=CATEGORY,
            description="LVDM's long videos: a prediction model makes latents one window after the other; with an "
            "interpolation model it makes distant ones first, and that model what is between them, so that little is "
            "handed on from window to window. Finished windows are kept on disk, as by Extend Video.",
            search_aliases=["lvdm", "hierarchical", "prediction", "interpolation", "resume", "weft"],
            inputs=[
                io.Model.Input("model", tooltip="LVDM's prediction model, such as sky_pred.ckpt."),
                io.Sampler.Input("sampler", tooltip="Any sampler; Release Sampler (Weft) gives the paper's."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels of every window."),
                io.Latent.Input(
                    "start", tooltip="A clip that is kept as the video's start; an empty latent gives only the size."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of the noise of all windows."),
                io.Int.Input("frames", default=1024, min=8, max=65536, tooltip="Of the whole video, with the start."),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Latents that a window of the prediction model is given: 1 as released. Distant ones with "
                    "an interpolation model.",
                ),
                io.Int.Input(
                    "level",
                    default=100,
                    min=-1,
                    max=249,
                    tooltip="Noise on given latents, as a step of the schedule: 100 as released. Against drift of "
                    "quality; the model is told. -1: none.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Unconditional guidance w: (1 + w) with what is given - w without. 0.1 as released.",
                ),
                io.String.Input(
                    "segments",
                    default="long",
                    tooltip="Name of the folder in output/weft_segments for finished windows, as in Extend Video.",
                ),
                io.Model.Input("interpolation", optional=True, tooltip="LVDM's interpolation model."),
                io.Conditioning.Input("conditioning", optional=True, tooltip="For models that read text."),
                _clear_input(),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The whole video, for Save Long Video (Weft).")],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        sampler: object,
        sigmas: object,
        start: dict,
        level: int,
        guidance: float,
        segments: str,
        interpolation: object = None,
        conditioning: list | None = None,
        clear: bool = False,
        **settings: int,
    ) -> io.NodeOutput:
        """Plan, and sample what is not on disk."""
        from ..model_loaders.bridge.mask_models import LongVideo as Wanted
        from ..model_loaders.bridge.mask_models import Models, make_long_video

        wanted = Wanted(level=None if level < 0 else level, strength=guidance, **settings)
        kept = kept_segments(cls.hidden, segments, clear)
        models = Models(model, interpolation)
        return io.NodeOutput(make_long_video(models, (sampler, sigmas), start, wanted, conditioning, kept))


NODES = [ExtendVideo, SaveLongVideo, ClearSegments]
HELD_BACK = [LongVideo]
"""Without a trained model of this kind, no workflow can show it."""
