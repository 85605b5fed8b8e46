"""Sections that recipes of several kinds have: data, autoencoder, noise, optimizer, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..kernels.sampling.schedules import NoiseSchedule
from .data.moving_shapes import MovingShapesConfig
from .settings import setting

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class MovingShapesData(MovingShapesConfig):
    """The procedural set: nothing to download, captions that are true."""

    kind: Literal["moving_shapes"] = setting("moving_shapes", doc="the procedural Moving Shapes set")

    @property
    def sides(self) -> dict[str, int]:
        """The setting that says how large frames are, in pixels."""
        return {"size": self.size}


@dataclass(frozen=True, kw_only=True)
class VideoData:
    """How clips are cut out of videos."""

    size: int = setting(256, minimum=8, doc="frames: short side resized to this, centre cropped to a square (pixels)")
    frames: int = setting(16, minimum=1, doc="consecutive frames of a clip")
    stride: int = setting(1, minimum=1, doc="every n-th frame of the video is used")
    seed: int = setting(0, minimum=0, doc="decides with the epoch where in its video each clip begins")
    held_out: int = setting(16, minimum=0, doc="videos at the end of the sorted list kept for validation")
    width: int | None = setting(
        None, minimum=8, doc="with height, instead of a square: frames cover both, and are centre cropped (pixels)"
    )
    height: int | None = setting(None, minimum=8, doc="see width")
    fps: float | None = setting(
        None,
        above=0,
        doc="instead of stride: frames per second of clips; frames of the video that are nearest in time are used",
    )

    @property
    def sides(self) -> dict[str, int]:
        """Settings that say how large frames are, in pixels: height and width, or one for both."""
        return {"height": self.height, "width": self.width} if self.height and self.width else {"size": self.size}

    def __post_init__(self) -> None:
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"stride: found {self.stride} beside fps = {self.fps}, expected one of both")

    @property
    def frame_sizes(self) -> list[tuple[int, int]]:
        """Height and width of frames, of each kind of clip, in pixels."""
        pixels = list(self.sides.values())
        return [(pixels[0], pixels[-1])]


@dataclass(frozen=True, kw_only=True)
class FolderData(VideoData):
    """Videos, or folders of frames, with captions in a folder."""

    kind: Literal["folder"] = setting("folder", doc="videos (and captions) in a folder")
    path: str = setting(
        doc="folder with videos or folders of frames (jpg, png), and captions.jsonl, captions.csv or a .txt each"
    )
    captions: str | None = setting(
        None,
        doc="another file of captions, .jsonl or .csv, in the folder or anywhere: columns file and caption, or "
        "WebVid's videoid, page_dir, name; only videos that it names are used",
    )
    buckets: tuple[tuple[int, int], ...] | None = setting(
        None,
        doc="instead of size: widths and heights such as [[576, 320], [320, 576]]; each video has those that are "
        "nearest to its own shape, and all clips of a batch have the same",
    )
    check: bool | None = setting(
        None,
        doc="false: videos are not all opened before training (WebVid: hours); those that cannot be used are replaced "
        "by the next one when their turn comes, and counted",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets is None:
            return
        if not self.buckets or min(map(min, self.buckets)) < 8:
            raise ValueError(f"buckets: found {self.buckets}, expected widths and heights of at least 8 pixels")
        if self.width is not None or self.height is not None:
            raise ValueError("buckets: found width or height beside them, expected one of both")
        if self.check is False:
            raise ValueError("check: found false beside buckets, expected videos that are opened: they say their shape")

    @property
    def sides(self) -> dict[str, int]:
        """Settings that say how large frames are, in pixels."""
        if self.buckets is None:
            return super().sides
        names = ("width", "height")
        pairs = ((f"buckets[{place}], {name}", pixels) for place, bucket in enumerate(self.buckets)
                 for name, pixels in zip(names, bucket, strict=True))  # fmt: skip
        return dict(pairs)

    @property
    def frame_sizes(self) -> list[tuple[int, int]]:
        """Height and width of frames, of each bucket."""
        return super().frame_sizes if self.buckets is None else [(height, width) for width, height in self.buckets]


@dataclass(frozen=True, kw_only=True)
class ShardData(VideoData):
    """Videos with captions in .tar files, as webdataset writes them: for more of them than a file system likes."""

    kind: Literal["shards"] = setting("shards", doc="videos and captions in .tar files (webdataset)")
    path: str = setting(doc="folder of .tar files, or a pattern such as shards/{00000..00099}.tar or shards/*.tar")
    index: str | None = setting(
        None, doc="folder where it is kept what is in which file and where; without: beside the files"
    )
    buffer: int = setting(
        10000, minimum=1, doc="clips that are shuffled among each other, of files that come in another order each epoch"
    )


Data = MovingShapesData | FolderData | ShardData


def frame_size(data: Data) -> tuple[int, int]:
    """Height and width of frames in pixels, of the first bucket where there are such."""
    return (data.size, data.size) if isinstance(data, MovingShapesData) else data.frame_sizes[0]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW and its learning rate."""

    learning_rate: float = setting(above=0, doc="peak learning rate")
    betas: tuple[float, float] = setting((0.9, 0.999), minimum=0, maximum=0.9999, doc="Adam's two decays")
    weight_decay: float = setting(0.01, minimum=0, doc="decoupled weight decay")
    warmup_steps: int = setting(0, minimum=0, doc="steps of linear warm-up")
    final_fraction: float = setting(
        1.0, minimum=0, maximum=1, doc="share of the rate left at the end of a cosine decay; 1 keeps it constant"
    )
    gradient_clip: float = setting(0.0, minimum=0, doc="largest gradient norm; 0 does not clip")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Length, batches and what is written when."""

    steps: int = setting(minimum=1, doc="optimizer steps")
    batch_size: int = setting(
        minimum=1,
        doc="clips per forward pass of all processes together: each of N takes an Nth of them, with the same losses",
    )
    accumulation: int = setting(1, minimum=1, doc="forward passes per optimizer step")
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto", doc="bf16: mixed precision; auto: bf16 on a GPU, float32 on a CPU"
    )
    activation_checkpointing: bool = setting(
        False, doc="keep less of a forward pass and compute it again for the gradients: less memory, a third slower"
    )
    sharded: bool = setting(
        False,
        doc="with several processes, share out weights, averages, gradients and optimizer among them (FSDP2) instead "
        "of having all of them in each: for networks that do not fit a GPU otherwise",
    )
    ema_decay: float = setting(0.9999, minimum=0, maximum=1, doc="decay of the averaged weights")
    log_every: int = setting(20, minimum=1, doc="steps averaged into one line of metrics.jsonl")
    checkpoint_every: int = setting(500, minimum=1, doc="steps between checkpoints")
    keep_checkpoints: int = setting(2, minimum=1, doc="newest checkpoints that are kept")
    validation_clips: int = setting(32, minimum=0, doc="held-out clips measured at every checkpoint")
    samples: int = setting(0, minimum=0, doc="videos of held-out captions made at every checkpoint, in samples/")
    tracker: str = setting(
        "", doc='who is told of the numbers beside TensorBoard: "module:function" that gives a tracking.Tracker'
    )


@dataclass(frozen=True, kw_only=True)
class VideoAutoencoderFile:
    """A trained 3D autoencoder."""

    kind: Literal["video"] = setting("video", doc="a 3D autoencoder of this trainer or a released one")
    path: str = setting(doc="run folder, checkpoint or bundle")
    weights: Literal["ema", "raw"] = setting("ema", doc="averaged or last weights of a run or its checkpoint")


@dataclass(frozen=True, kw_only=True)
class ImageAutoencoderFile:
    """The autoencoder of Stable Diffusion, frame by frame."""

    kind: Literal["image"] = setting("image", doc="Stable Diffusion's autoencoder, frame by frame")
    path: str = setting(doc="folder in diffusers' layout")


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Which latents are made, and where they are kept."""

    clips: int = setting(
        0, minimum=0, doc="clips that are encoded once, kept on disk and trained on; 0: all of the data set"
    )
    cache: str = setting("", doc="folder where the latents are kept; empty: the run folder")


@dataclass(frozen=True, kw_only=True)
class VideoFirstStage(LatentCache, VideoAutoencoderFile):
    """A trained 3D autoencoder; scale and shift of its latents are measured."""


@dataclass(frozen=True, kw_only=True)
class ImageFirstStage(LatentCache, ImageAutoencoderFile):
    """The autoencoder of Stable Diffusion, frame by frame."""

    scale: float = setting(0.18215, above=0, doc="latents are multiplied by this")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The noise schedule."""

    linear_start: float = setting(0.00085, above=0, maximum=1, doc="first beta")
    linear_end: float = setting(0.012, above=0, maximum=1, doc="last beta")
    spacing: Literal["roots", "even", "cosine"] = setting(
        "roots",
        doc="what is equally spaced: square roots of betas (Stable Diffusion), or betas (AnimateDiff, HARIVO); cosine: "
        "neither, by that schedule, which has no first and last beta (Show-1 on pixels)",
    )
    zero_terminal_snr: bool = setting(False, doc="stretched so that nothing is left of a clip at the last time")
    prediction: Literal["noise", "velocity"] = setting("noise", doc="what the network predicts")
    offset_noise: float = setting(
        0.0, minimum=0, doc="added to the noise: one draw for each channel and frame, times this"
    )
    eta: float = setting(1.0, minimum=0, maximum=1, doc="noise that Release Sampler adds at each step")

    def noise_schedule(self) -> NoiseSchedule:
        """What the kernels, the samplers and exported files know of it."""
        return NoiseSchedule(
            self.linear_start,
            self.linear_end,
            spacing=self.spacing,
            zero_terminal_snr=self.zero_terminal_snr,
            prediction=self.prediction,
            offset_noise=self.offset_noise,
            eta=self.eta,
        )


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The diffusion loss."""

    caption_dropout: float = setting(0.1, minimum=0, maximum=1, doc="share of captions replaced by the empty one")
    last_time: int = setting(
        1000, minimum=100, doc="trained on times before this one: 900 makes an expert of the last steps (Show-1)"
    )
    p2_gamma: float = setting(
        0.0,
        minimum=0,
        doc="P2 weighting: power; 0: all times alike, as released; 1: errors of the clip count, not of the noise",
    )
    p2_k: float = setting(1.0, above=0, doc="P2 weighting: signal-to-noise ratio below which the weight stays level")
    contrast_power: float = setting(
        0.0,
        minimum=0,
        doc="clips count by their contrast in latents to minus this: 1 finds the shapes of faint objects; 0: all alike",
    )
    caption_preference: float = setting(
        0.0,
        minimum=0,
        doc="weight of preferring a caption to the same one with another direction (a picture's: shape or place), or "
        "with those of two exchanged",
    )
    preference_start: int = setting(
        880, minimum=0, doc="time from which captions are preferred: there little is left of the clip itself"
    )
    preference_clips: int = setting(8, minimum=1, doc="so many clips of a batch are tried with another caption")


@dataclass(frozen=True, kw_only=True)
class RareCaptions:
    """Captions that are seldom shown at first.

    Where two words mean opposite ways and are as frequent, no gradient says at first that clips have a way at all.
    While one is the rule, the way is learned as such, and then that the other word turns it round.
    """

    containing: tuple[str, ...] = setting((), doc='texts that make a caption one of them, such as ["right to left"]')
    share: float = setting(0.3, minimum=0, maximum=1, doc="share of them that is shown at first")
    start: int = setting(0, minimum=0, doc="step from which on more of them are shown")
    end: int = setting(0, minimum=0, doc="step from which on all of them are shown")
