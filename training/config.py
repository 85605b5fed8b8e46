"""The kinds of recipes: what is trained, on what, with which losses, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomllib

from ..kernels.networks.higen import HiGenUNetConfig, SpaceTimeUNetConfig
from ..kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig
from ..kernels.networks.show1 import PixelUNetConfig
from ..kernels.networks.versvideo import VersVideoUNetConfig
from ..kernels.networks.video_autoencoder import VideoAutoencoderConfig
from ..model_loaders.image_unet import ImageUNetConfig
from .autoencoder_settings import AutoencoderLoss, Crops
from .control_settings import ConditionMaps, DenoiserSource, EdgeHints
from .higen_settings import Cues, Pictures
from .image_settings import PictureCaptions
from .mask_settings import LatentWindow, Masks
from .motion_settings import ImageModelSource, MotionLosses, MotionParts
from .sections import (
    LARGEST_SEED,
    Data,
    Diffusion,
    ImageAutoencoderFile,
    ImageFirstStage,
    MovingShapesData,
    Optimization,
    RareCaptions,
    Run,
    Schedule,
    VideoAutoencoderFile,
    VideoFirstStage,
)
from .settings import RecipeError, Table, read_section, section, setting
from .show1_settings import Conditioning, PixelFrames, Stage
from .start_settings import DenoiserStart, GivenWeights, ImageStart, MotionStart, VersVideoStart
from .teacher_settings import TeacherSettings
from .temporal_vae_settings import Refinement, TemporalVAELoss
from .text_settings import CaptionText, ClipText, DenoiserText, GivenText, ImageModelText, T5Text
from .validate import validate


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
class TemporalVAERecipe:
    """VersVideo's temporal decoder around a frozen image autoencoder."""

    task: Literal["temporal_vae"] = setting("temporal_vae", doc="train a temporal decoder for an image autoencoder")
    system: str = setting("versvideo", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoAutoencoderFile | ImageAutoencoderFile = setting(doc="the frozen autoencoder of single frames")
    refinement: Refinement = section(Refinement, doc="the network behind the decoder")
    loss: TemporalVAELoss = section(TemporalVAELoss, doc="losses")
    optimization: Optimization = setting(doc="optimizer of what is added, and of the discriminator")
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
class VersVideoRecipe:
    """VersVideo's denoiser on the latents of single frames: videos, and pictures."""

    task: Literal["versvideo"] = setting("versvideo", doc="train VersVideo's denoiser on latents")
    system: str = setting("versvideo", doc="system that exported files are marked as")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="the frozen autoencoder, one latent per frame")
    network: VersVideoUNetConfig = setting(doc="the UNet, with its experts")
    exchange: float = setting(
        0.001, minimum=0, maximum=1, doc="share of the others that every expert takes over after each step"
    )
    text_encoder: CaptionText | GivenText | ClipText = setting(doc="the text encoder")
    pictures: Pictures = section(Pictures, doc="joint training on images")
    initialization: VersVideoStart = section(VersVideoStart, doc="how the UNet starts")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule")
    diffusion: Diffusion = section(Diffusion, doc="loss")
    optimization: Optimization = setting(doc="optimizer")
    run: Run = setting(doc="length and output")


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
    teacher: TeacherSettings = section(TeacherSettings, doc="a model that is learned from beside the noise")
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
    teacher: TeacherSettings = section(TeacherSettings, doc="a model that is learned from beside the noise")
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
class VersVideoControlRecipe:
    """VersVideo's unified ControlNet, with its denoiser frozen."""

    task: Literal["versvideo_control"] = setting("versvideo_control", doc="train VersVideo's unified ControlNet")
    seed: int = setting(23, minimum=0, maximum=LARGEST_SEED, doc="seed of everything random")
    data: Data = setting(doc="what it learns from")
    conditions: tuple[str, ...] = setting(
        ("image", "canny", "hed", "depth"), doc="maps that it is steered by, each with an adapter of its own"
    )
    hints: ConditionMaps = section(ConditionMaps, doc="where maps come from")
    denoiser: DenoiserSource = setting(doc="the frozen denoiser")
    autoencoder: VideoFirstStage | ImageFirstStage = setting(doc="its autoencoder, one latent per frame")
    text_encoder: ClipText | DenoiserText = setting(doc="its text encoder")
    initialization: GivenWeights = section(GivenWeights, doc="what is gone on from, if not the denoiser's encoder")
    rare: RareCaptions = section(RareCaptions, doc="captions that are seldom shown at first")
    schedule: Schedule = section(Schedule, doc="noise schedule: the denoiser's")
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
    """A model of LVDM's long videos: it goes on from given latents, or makes those between them.

    With as many channels in as out, and no mask, that of its short videos without captions.
    """

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
    def masked(self) -> bool:
        """Whether the network reads a mask."""
        return self.network.in_channels > self.network.out_channels

    @property
    def diffusion(self) -> Diffusion:
        """All times alike, as released; there are no captions."""
        return Diffusion(caption_dropout=0.0)

    @property
    def rare(self) -> RareCaptions:
        """None."""
        return RareCaptions()


DenoiserRecipe = (
    TextToVideoRecipe | HiGenRecipe | VersVideoRecipe | ImageRecipe | ExpertRecipe | Show1Recipe | MaskRecipe
)
ImageModelRecipe = HarivoRecipe | ControlRecipe
"""Of what is trained around a frozen image model."""
AddedRecipe = ImageModelRecipe | VersVideoControlRecipe
"""Of what is trained around a frozen denoiser, image model or not."""
DiffusionRecipe = DenoiserRecipe | AddedRecipe
Recipe = AutoencoderRecipe | DiffusionRecipe | FeaturesRecipe | TemporalVAERecipe
RECIPES: dict[str, type] = {
    "autoencoder": AutoencoderRecipe,
    "temporal_vae": TemporalVAERecipe,
    "text_to_video": TextToVideoRecipe,
    "higen": HiGenRecipe,
    "versvideo": VersVideoRecipe,
    "image": ImageRecipe,
    "show1": Show1Recipe,
    "expert": ExpertRecipe,
    "mask": MaskRecipe,
    "harivo": HarivoRecipe,
    "control": ControlRecipe,
    "versvideo_control": VersVideoControlRecipe,
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
