"""The kinds of recipes: what is trained, on what, with which losses, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomllib

from ..kernels.networks.higen import HiGenUNetConfig, SpaceTimeUNetConfig
from ..kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig
from ..kernels.networks.show1 import PixelUNetConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoderConfig
from ..kernels.sampling.schedules import NoiseSchedule
from ..model_loaders.image_unet import ImageUNetConfig
from .autoencoder_settings import AutoencoderLoss, Crops
from .control_settings import EdgeHints
from .data.moving_shapes import MovingShapesConfig
from .higen_settings import Cues, Pictures
from .mask_settings import LatentWindow, Masks
from .motion_settings import ImageModelSource, MotionLosses, MotionParts
from .settings import RecipeError, Table, read_section, section, setting
from .show1_settings import Conditioning, PixelFrames, Stage
from .start_settings import DenoiserStart, GivenWeights, ImageStart, MotionStart
from .text_settings import CaptionText, ClipText, GivenText, ImageModelText, T5Text
from .validate import validate

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
class FolderData:
    """Videos, or folders of frames, with captions in a folder."""

    kind: Literal["folder"] = setting("folder", doc="videos (and captions) in a folder")
    path: str = setting(doc="folder with videos or folders of frames (jpg, png), and captions.jsonl or a .txt each")
    size: int = setting(256, minimum=8, doc="frames: short side resized to this, centre cropped to a square (pixels)")
    frames: int = setting(16, minimum=1, doc="consecutive frames of a clip")
    stride: int = setting(1, minimum=1, doc="every n-th frame of the video is used")
    seed: int = setting(0, minimum=0, doc="decides with the epoch where in its video each clip begins")
    held_out: int = setting(16, minimum=0, doc="videos at the end of the sorted list kept for validation")
    width: int | None = setting(
        None, minimum=8, doc="with height, instead of a square: frames cover both, and are centre cropped (pixels)"
    )
    height: int | None = setting(None, minimum=8, doc="see width")

    @property
    def sides(self) -> dict[str, int]:
        """Settings that say how large frames are, in pixels: height and width, or one for both."""
        return {"height": self.height, "width": self.width} if self.height and self.width else {"size": self.size}


Data = MovingShapesData | FolderData


def frame_size(data: Data) -> tuple[int, int]:
    """Height and width of frames in pixels."""
    pixels = list(data.sides.values())
    return pixels[0], pixels[-1]


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
    batch_size: int = setting(minimum=1, doc="clips per forward pass")
    accumulation: int = setting(1, minimum=1, doc="forward passes per optimizer step")
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto", doc="bf16: mixed precision; auto: bf16 on a GPU, float32 on a CPU"
    )
    ema_decay: float = setting(0.9999, minimum=0, maximum=1, doc="decay of the averaged weights")
    log_every: int = setting(20, minimum=1, doc="steps averaged into one line of metrics.jsonl")
    checkpoint_every: int = setting(500, minimum=1, doc="steps between checkpoints")
    keep_checkpoints: int = setting(2, minimum=1, doc="newest checkpoints that are kept")
    validation_clips: int = setting(32, minimum=0, doc="held-out clips measured at every checkpoint")


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """A 3D autoencoder."""

    task: Literal["autoencoder"] = setting("autoencoder", doc="train a 3D autoencoder")
    system: str = setting("lvdm", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    network: VideoAutoencoderConfig = setting(doc="the autoencoder")
    initialization: Literal["default", "resampling"] = setting(
        "default",
        doc="resampling: start as a network that shrinks and enlarges the clip smoothly; it finds colours far sooner",
    )
    crops: Crops = section(Crops, doc="small windows at the beginning of the run")
    loss: AutoencoderLoss = section(AutoencoderLoss, doc="losses")
    optimization: Optimization = setting(doc="optimizer of the autoencoder, and of the discriminator")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class FeaturesRecipe:
    """The network in whose features sets of videos are compared."""

    task: Literal["features"] = setting("features", doc="train the network of the Frechet distance")
    system: str = setting("features", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: MovingShapesData = setting(doc="what it learns from")
    channels: tuple[int, ...] = setting(
        minimum=1, doc="widths of the first convolution and of each block; the last one is that of the features"
    )
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Which latents are made, and where they are kept."""

    path: str = setting(doc="video: run folder, checkpoint or bundle; image: folder in diffusers' layout")
    clips: int = setting(
        0, minimum=0, doc="clips that are encoded once, kept on disk and trained on; 0: all of the data set"
    )
    cache: str = setting("", doc="folder where the latents are kept; empty: the run folder")


@dataclass(frozen=True, kw_only=True)
class VideoFirstStage(LatentCache):
    """A trained 3D autoencoder; scale and shift of its latents are measured."""

    kind: Literal["video"] = setting("video", doc="a 3D autoencoder of this trainer or a released one")
    weights: Literal["ema", "raw"] = setting("ema", doc="averaged or last weights of a run or its checkpoint")


@dataclass(frozen=True, kw_only=True)
class ImageFirstStage(LatentCache):
    """The autoencoder of Stable Diffusion, frame by frame."""

    kind: Literal["image"] = setting("image", doc="Stable Diffusion's autoencoder, frame by frame")
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


@dataclass(frozen=True, kw_only=True)
class TextToVideoRecipe:
    """A text-to-video UNet on the latents of a trained autoencoder."""

    task: Literal["text_to_video"] = setting("text_to_video", doc="train a text-to-video UNet on latents")
    system: str = setting("lvdm", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder")
    network: TextToVideoUNetConfig = setting(doc="the UNet")
    text_encoder: CaptionText | GivenText | ClipText = setting(doc="the text encoder")
    initialization: DenoiserStart = section(DenoiserStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class HiGenRecipe:
    """HiGen's denoiser on the latents of single frames: pictures, and videos around their middle frame."""

    task: Literal["higen"] = setting("higen", doc="train HiGen's denoiser on latents")
    system: str = setting("higen", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder, one latent per frame")
    network: HiGenUNetConfig = setting(doc="the UNet")
    text_encoder: CaptionText | GivenText | ClipText = setting(doc="the text encoder")
    cues: Cues = setting(doc="motion and appearance")
    pictures: Pictures = section(Pictures, doc="joint training on images")
    spatial_gradient: float = setting(
        1.0,
        minimum=0,
        doc="factor on the gradients of spatial layers, which come from an image model: 0.2 in the paper",
    )
    prior_start: int = setting(
        0, minimum=0, doc="first step with the whole prior; before it is level, so that what texts say is learned first"
    )
    initialization: DenoiserStart = section(DenoiserStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class PictureCaptions:
    """What pictures are called, when they are frames of clips."""

    places: float = setting(
        0.0,
        minimum=0,
        maximum=1,
        doc="share of pictures of Moving Shapes whose captions say where things are instead of where they go",
    )


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """An image model in Stable Diffusion's layout on single frames of clips."""

    task: Literal["image"] = setting("image", doc="train an image model on single frames")
    system: str = setting("image", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder, one latent per frame")
    network: ImageUNetConfig = setting(doc="the UNet")
    text_encoder: CaptionText | GivenText | ClipText = setting(doc="the text encoder")
    captions: PictureCaptions = section(PictureCaptions, doc="what pictures are called")
    initialization: ImageStart = section(ImageStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class HarivoRecipe:
    """HARIVO: motion for a frozen image model."""

    task: Literal["harivo"] = setting("harivo", doc="train motion for a frozen image model")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    fps: int = setting(8, minimum=1, doc="frames per second of the clips, which the exported file says")
    data: Data = setting(doc="what it learns from")
    image_model: ImageModelSource = setting(doc="the frozen image model")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="its autoencoder, one latent per frame")
    text_encoder: ClipText | ImageModelText = setting(doc="its text encoder")
    network: MotionParts = section(MotionParts, doc="parts around the image model")
    losses: MotionLosses = section(MotionLosses, doc="weights of losses")
    initialization: MotionStart = section(MotionStart, doc="how the parts start")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss of the noise")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class ControlRecipe:
    """A ControlNet for an image model, on single frames of clips and pictures of their edges."""

    task: Literal["control"] = setting("control", doc="train a ControlNet for a frozen image model")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    hints: EdgeHints = section(EdgeHints, doc="pictures that it is steered by")
    image_model: ImageModelSource = setting(doc="the frozen image model")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="its autoencoder, one latent per frame")
    text_encoder: ClipText | ImageModelText = setting(doc="its text encoder")
    initialization: GivenWeights = section(GivenWeights, doc="what is gone on from, if not the image model's encoder")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule: the image model's")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class Show1Recipe:
    """A stage of Show-1 on pixels."""

    task: Literal["show1"] = setting("show1", doc="train a stage of Show-1 on pixels")
    stage: Stage = setting(doc="base: keyframes; interpolation: frames between them; sr1: four times height and width")
    system: str = setting("show1", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    pixels: PixelFrames = section(PixelFrames, doc="what becomes of the clips")
    conditioning: Conditioning = section(Conditioning, doc="what the later stages are given")
    network: PixelUNetConfig = setting(doc="the UNet")
    text_encoder: CaptionText | GivenText | T5Text = setting(doc="the text encoder")
    initialization: DenoiserStart = section(DenoiserStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """ModelScopeT2V's UNet on latents: Show-1's expert translation, trained on times before `diffusion.last_time`."""

    task: Literal["expert"] = setting("expert", doc="train Show-1's super-resolution on latents")
    system: str = setting("show1", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder, one latent per frame")
    network: SpaceTimeUNetConfig = setting(doc="the UNet")
    text_encoder: CaptionText | GivenText | ClipText = setting(doc="the text encoder")
    initialization: DenoiserStart = section(DenoiserStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


@dataclass(frozen=True, kw_only=True)
class MaskRecipe:
    """A model of LVDM's long videos: it goes on from given latents, or makes those between them."""

    task: Literal["mask"] = setting("mask", doc="train a model that is told which latents are given")
    system: str = setting("lvdm", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder")
    network: LatentVideoUNetConfig = setting(doc="the UNet, which reads a mask behind the latents")
    latents: LatentWindow = section(LatentWindow, doc="which latents of a clip are a sample")
    masks: Masks = section(Masks, doc="which of them are given")
    initialization: DenoiserStart = section(DenoiserStart, doc="how the UNet starts")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")

    @property
    def diffusion(self) -> Diffusion:
        """All times alike, as released; there are no captions."""
        return Diffusion(caption_dropout=0.0)

    @property
    def rare(self) -> RareCaptions:
        """None."""
        return RareCaptions()


DenoiserRecipe = TextToVideoRecipe | HiGenRecipe | ImageRecipe | ExpertRecipe | Show1Recipe | MaskRecipe
ImageModelRecipe = HarivoRecipe | ControlRecipe
"""Of what is trained around a frozen image model."""
DiffusionRecipe = DenoiserRecipe | ImageModelRecipe
Recipe = AutoencoderRecipe | DiffusionRecipe | FeaturesRecipe
RECIPES: dict[str, type] = {
    "autoencoder": AutoencoderRecipe,
    "text_to_video": TextToVideoRecipe,
    "higen": HiGenRecipe,
    "image": ImageRecipe,
    "show1": Show1Recipe,
    "expert": ExpertRecipe,
    "mask": MaskRecipe,
    "harivo": HarivoRecipe,
    "control": ControlRecipe,
    "features": FeaturesRecipe,
}


def read_table(path: Path) -> Table:
    """The TOML table of a recipe file; raises RecipeError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise RecipeError(f"{path}: not a TOML recipe: {error}") from error


def override(table: Table, assignments: list[str]) -> None:
    """Apply `section.key=value` assignments to a recipe's table; values are TOML, anything else is taken as text."""
    for assignment in assignments:
        name, found, text = assignment.partition("=")
        *sections, key = name.strip().split(".")
        if not found or not key:
            raise RecipeError(f"--set {assignment}: expected section.key=value")
        target: Any = table
        for part in sections:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise RecipeError(f"--set {assignment}: {part} is no section")
        try:
            target[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            target[key] = text


def read_recipe(table: Table, name: str) -> Recipe:
    """The recipe of a TOML table; raises RecipeError, beginning with `name`, when it is impossible."""
    recipe: Recipe = read_section(Recipe, table, f"{name}: ")
    validate(recipe, name)
    return recipe
