"""Settings that are each allowed and impossible together: found before anything is built or encoded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .settings import RecipeError

if TYPE_CHECKING:
    from ..kernels.networks.higen import HiGenUNetConfig, SpaceTimeUNetConfig
    from ..kernels.networks.lvdm import LatentVideoUNetConfig, TextToVideoUNetConfig
    from ..kernels.networks.show1 import PixelUNetConfig
    from ..kernels.networks.versvideo import VersVideoUNetConfig
    from ..model_loaders.image_unet import ImageUNetConfig
    from .config import (
        AutoencoderRecipe,
        ControlRecipe,
        Data,
        DenoiserRecipe,
        DiffusionRecipe,
        FeaturesRecipe,
        HarivoRecipe,
        ImageRecipe,
        MaskRecipe,
        Recipe,
        Show1Recipe,
        TemporalVAERecipe,
        VersVideoControlRecipe,
    )


def validate(recipe: Recipe, name: str) -> None:
    """Raise RecipeError when the settings of a recipe contradict each other; errors begin with `name`."""
    try:
        _validate_sides(recipe)
        _validate_parts(recipe)
        _validate_run(recipe)
        if recipe.task == "autoencoder":
            _validate_autoencoder(recipe)
            _validate_windows(recipe)
        elif recipe.task == "temporal_vae":
            _validate_temporal_vae(recipe)
        elif recipe.task == "features":
            _validate_features(recipe)
        else:
            if recipe.task == "higen":
                _validate_higen(recipe.network)
            elif recipe.task == "versvideo":
                _validate_versvideo(recipe.network)
            elif recipe.task == "versvideo_control":
                _validate_conditions(recipe)
            elif recipe.task == "harivo":
                _validate_motion(recipe)
            elif recipe.task == "control":
                _validate_hints(recipe)
            elif recipe.task == "image":
                _validate_image(recipe.network)
                _validate_places(recipe.data, "captions.places", recipe.captions.places)
                _validate_teacher(recipe)
            elif recipe.task == "show1":
                _validate_stage(recipe)
            elif recipe.task == "expert":
                _validate_space_time(recipe.network)
            elif recipe.task == "mask":
                _validate_mask(recipe)
            else:
                _validate_unet(recipe.network)
            _validate_text_and_noise(recipe)
            _validate_preference(recipe)
            if recipe.rare.end < recipe.rare.start:
                raise RecipeError(
                    f"rare.end: found {recipe.rare.end}, expected at least rare.start = {recipe.rare.start}"
                )
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error


# Tasks that take clips of several sizes.
_BUCKETED = ("text_to_video", "higen", "versvideo", "expert", "temporal_vae")
# Tasks whose networks take frames of any height and width.
_RECTANGULAR = (
    "temporal_vae",
    "text_to_video",
    "higen",
    "versvideo",
    "versvideo_control",
    "image",
    "show1",
    "expert",
    "mask",
)


# Tasks whose networks are called as a whole, by one objective: they can be shared out.
_SHARED_OUT = ("text_to_video", "higen", "versvideo", "image", "show1", "expert", "mask")
_SAMPLED = ("text_to_video", "versvideo", "image", "harivo")


def _validate_run(recipe: Recipe) -> None:
    run = recipe.run
    if run.sharded and recipe.task not in _SHARED_OUT:
        raise RecipeError(
            f"run.sharded: found true with the task {recipe.task!r}, expected false: its networks are small, and used "
            "in parts"
        )
    if not run.samples:
        return
    if recipe.task not in _SAMPLED:
        raise RecipeError(
            f"run.samples: found {run.samples} with the task {recipe.task!r}, expected 0: this trainer makes videos "
            f"with {', '.join(_SAMPLED)}"
        )
    assert recipe.task in _SAMPLED
    autoencoder, text = recipe.autoencoder.kind, recipe.text_encoder.kind  # type: ignore[union-attr]
    if autoencoder != "video" or text == "clip":
        raise RecipeError(
            f"run.samples: found {run.samples} with an autoencoder of kind {autoencoder!r} and a text encoder of kind "
            f"{text!r}, expected 0: with those of others, videos are made in ComfyUI"
        )


def _validate_parts(recipe: Recipe) -> None:
    """A caption says what the first part of a long clip shows."""
    data = recipe.data
    if data.kind == "moving_shapes" and data.part and recipe.task not in ("mask", "autoencoder"):
        raise RecipeError(
            f"data.part: found {data.part} with the task {recipe.task!r}, which reads one caption for a whole clip; "
            "expected 0"
        )


def _validate_sides(recipe: Recipe) -> None:
    data = recipe.data
    if data.kind == "folder" and data.buckets is not None and recipe.task not in _BUCKETED:
        raise RecipeError(
            f"data.buckets: found them with the task {recipe.task!r}, whose clips have one size; expected "
            f"data.size, or one of the tasks {', '.join(_BUCKETED)}"
        )
    if data.kind == "moving_shapes" or (data.width is None and data.height is None):
        return
    if data.width is None or data.height is None:
        given, missing = ("width", "height") if data.height is None else ("height", "width")
        raise RecipeError(f"data.{missing}: missing beside data.{given}, expected both, or data.size alone for squares")
    if recipe.task not in _RECTANGULAR and data.width != data.height:
        raise RecipeError(
            f"data.width, data.height: found {data.width} x {data.height}, the task {recipe.task!r} takes squares; "
            "expected data.size alone"
        )


def text_width_key(recipe: DenoiserRecipe) -> str:
    """Which setting of the network is the width of its text encoder's tokens."""
    return "text_width" if recipe.task in ("higen", "show1") else "context_width"


def _validate_autoencoder(recipe: AutoencoderRecipe) -> None:
    network = recipe.network
    for key in ("n_hiddens", "z_channels", "embed_dim", "norm_groups"):
        _at_least_one(f"network.{key}", getattr(network, key))
    if network.image_channels != 3:
        raise RecipeError(f"network.image_channels: found {network.image_channels}, expected 3: clips are in colour")
    for factor in network.downsample:
        if factor < 1 or factor & (factor - 1):
            raise RecipeError(f"network.downsample: found {list(network.downsample)}, expected powers of two")


def _validate_windows(recipe: AutoencoderRecipe) -> None:
    """The sizes that the networks see."""
    data, crops, loss = recipe.data, recipe.crops, recipe.loss
    time, *space = recipe.network.downsample
    _multiple("data.frames", data.frames, time, "network.downsample in time")
    sizes = {"data.size": data.size} | ({"crops.size": crops.size} if crops.steps else {})
    for key, size in sizes.items():
        _multiple(key, size, max(space), "network.downsample in height and width")
    if crops.steps and crops.size > data.size:
        raise RecipeError(f"crops.size: found {crops.size}, expected at most data.size = {data.size}")
    key = "crops.size" if loss.discriminator_start < crops.steps else "data.size"
    _validate_discriminator(recipe, key, sizes[key])


def _validate_discriminator(recipe: AutoencoderRecipe | TemporalVAERecipe, key: str, size: int) -> None:
    """Whether frames of this size leave any patches."""
    loss = recipe.loss
    if not loss.discriminator_channels:
        raise RecipeError("loss.discriminator_channels: found none, expected at least one width")
    if loss.discriminator_start >= recipe.run.steps:
        return
    # All but the last two convolutions halve a frame, those take one pixel each; the first halves it always.
    layers = len(loss.discriminator_channels)
    patches = (size >> max(1, layers - 1)) - (1 if layers == 1 else 2)
    if patches < 1:
        raise RecipeError(
            f"loss.discriminator_channels: {layers} widths leave no patch of frames with {key} = {size}; "
            "expected fewer widths or larger frames"
        )


def _validate_temporal_vae(recipe: TemporalVAERecipe) -> None:
    data, refinement = recipe.data, recipe.refinement
    if data.frames < 2:
        raise RecipeError(f"data.frames: found {data.frames}, expected at least 2: frames are to see each other")
    if not refinement.mult:
        raise RecipeError("refinement.mult: found none, expected a factor of at least 1 per level")
    for key, pixels in data.sides.items():
        _multiple(f"data.{key}", pixels, 2 ** (len(refinement.mult) - 1), "what refinement.mult halves")
    key, smallest = min(data.sides.items(), key=lambda side: side[1])
    _validate_discriminator(recipe, f"data.{key}", smallest)


def _validate_features(recipe: FeaturesRecipe) -> None:
    blocks, data = len(recipe.channels) - 1, recipe.data
    if blocks < 1:
        raise RecipeError(f"channels: found {list(recipe.channels)}, expected at least two widths")
    if data.frames <= 2 * blocks:
        raise RecipeError(
            f"data.frames: found {data.frames}, expected at least {2 * blocks + 1}: each of {blocks} blocks takes two"
        )
    if data.unnamed_speeds:
        raise RecipeError(f"data.unnamed_speeds: found {data.unnamed_speeds}, expected 0: speeds are learned")


def _validate_unet(network: TextToVideoUNetConfig) -> None:
    for key in ("num_heads", "depth"):
        _at_least_one(f"network.{key}", getattr(network, key))
    _validate_levels(network)
    _validate_attention(network)


def _validate_attention(network: TextToVideoUNetConfig | LatentVideoUNetConfig) -> None:
    levels = _widths(network.model_channels, network.channel_mult, network.attention_factors)
    # The middle of the network attends too, at the width of the last level.
    for factor in sorted({*network.attention_factors, max(levels)}):
        _multiple("network: width", levels[factor], network.num_heads, "network.num_heads")
    if network.relative_positions:
        _at_least_one("network.temporal_length", network.temporal_length)


def _validate_mask(recipe: MaskRecipe) -> None:
    network, masks, length = recipe.network, recipe.masks, recipe.latents.length
    _at_least_one("network.num_heads", network.num_heads)
    if network.in_channels not in (network.out_channels, network.out_channels + 1):
        raise RecipeError(
            f"network.in_channels: found {network.in_channels}, expected network.out_channels + 1 = "
            f"{network.out_channels + 1}: the mask is behind the latents; or without a mask {network.out_channels}"
        )
    if not recipe.masked and (masks.first or masks.ends or masks.levels or network.noise_levels):
        raise RecipeError(
            f"network.in_channels: found {network.in_channels}, which leaves no place for a mask; expected "
            "masks.first, masks.ends, masks.levels and network.noise_levels of 0 with it"
        )
    if network.noise_levels < masks.levels:
        raise RecipeError(
            f"network.noise_levels: found {network.noise_levels}, expected at least masks.levels = {masks.levels}"
        )
    if masks.first + masks.ends > 1:
        raise RecipeError(f"masks.first, masks.ends: found {masks.first} and {masks.ends}, expected a sum of at most 1")
    most = max(masks.counts, default=0) if masks.first else 1
    if not 1 <= most < length or (masks.ends and length < 3):
        raise RecipeError(
            f"latents.length: found {length}, expected more than the most latents that are given ({most}), and 3 or "
            "more with masks.ends"
        )
    _validate_attention(network)


def _validate_higen(network: HiGenUNetConfig) -> None:
    for key in ("text_width", "resampled_tokens", "resampler_depth", "resampler_heads"):
        _at_least_one(f"network.{key}", getattr(network, key))
    _validate_space_time(network)
    _multiple("network: 4 * model_channels", 4 * network.model_channels, network.resampler_heads, "resampler_heads")


def _validate_versvideo(network: VersVideoUNetConfig) -> None:
    for key in ("in_channels", "num_res_blocks", "heads", "context_width", "depth", "spatial_experts"):
        _at_least_one(f"network.{key}", getattr(network, key))
    _at_least_one("network.temporal_experts", network.temporal_experts)
    if network.out_channels != network.in_channels:
        raise RecipeError(
            f"network.out_channels: found {network.out_channels}, expected network.in_channels = {network.in_channels}"
        )
    levels = _widths(network.model_channels, network.channel_mult, network.attention_factors)
    for width in levels.values():
        _multiple("network: width", width, 16, "what excitations squeeze")
    # The middle of the network attends too, at the width of the last level.
    for factor in sorted({*network.attention_factors, max(levels)}):
        _multiple("network: width", levels[factor], network.heads, "network.heads")


def _validate_space_time(network: SpaceTimeUNetConfig) -> None:
    for key in ("head_width", "stem_heads"):
        _at_least_one(f"network.{key}", getattr(network, key))
    levels = _validate_levels(network)
    for factor in sorted({*network.attention_factors, max(levels)}):
        _multiple("network: width", levels[factor], network.head_width, "network.head_width")


def _validate_stage(recipe: Show1Recipe) -> None:
    network, data = recipe.network, recipe.data
    if network.stage != recipe.stage:
        channels = {"base": 3, "interpolation": 7, "sr1": 6}[recipe.stage]
        levels = "more than 0" if recipe.stage == "sr1" else "0"
        raise RecipeError(
            f"network: found in_channels = {network.in_channels}, noise_levels = {network.noise_levels} and temporal = "
            f"{str(network.temporal).lower()}, the stage {recipe.stage!r} has {channels}, {levels} and true"
        )
    if network.out_channels not in (3, 6):
        raise RecipeError(f"network.out_channels: found {network.out_channels}, expected 3, or 6 with a variance")
    _validate_pixel_network(network)
    factor = math.lcm(network.multiple, 4 if recipe.stage == "sr1" else 1)
    for side, pixels in data.sides.items():
        _multiple(f"data.{side}", pixels, recipe.pixels.shrink, "pixels.shrink")
        size = pixels // recipe.pixels.shrink
        _multiple(f"data.{side} / pixels.shrink", size, factor, "what the network halves, or the stage enlarges")
    least = 5 if recipe.stage == "interpolation" else 2
    if data.frames < least:
        raise RecipeError(f"data.frames: found {data.frames}, expected at least {least}")
    if recipe.stage == "base" and recipe.conditioning.highest_level:
        raise RecipeError(
            f"conditioning.highest_level: found {recipe.conditioning.highest_level}, expected 0: keyframes are given "
            "nothing"
        )
    if recipe.conditioning.highest_level >= network.noise_levels > 0:
        raise RecipeError(
            f"conditioning.highest_level: found {recipe.conditioning.highest_level}, expected less than "
            f"network.noise_levels = {network.noise_levels}"
        )


def _validate_pixel_network(network: PixelUNetConfig) -> None:
    for key in ("context_width", "embedding_width", "head_width", "temporal_heads", "pooling_heads", "norm_groups"):
        _at_least_one(f"network.{key}", getattr(network, key))
    levels = _widths(network.model_channels, network.channel_mult, network.attention_factors)
    if len(network.num_res_blocks) != len(levels) or min(network.num_res_blocks) < 1:
        raise RecipeError(
            f"network.num_res_blocks: found {list(network.num_res_blocks)}, expected at least 1 for each of "
            f"{len(levels)} levels"
        )
    # The middle of the network attends too, at the width of the last level.
    for factor in sorted({*network.attention_factors, max(levels)}):
        _multiple("network: width", levels[factor], network.head_width, "network.head_width")
        _multiple("network: width", levels[factor], network.temporal_heads, "network.temporal_heads")
    _multiple("network.text_width", network.text_width, network.pooling_heads, "network.pooling_heads")


def _validate_motion(recipe: HarivoRecipe) -> None:
    _validate_places(recipe.data, "losses.places", recipe.losses.places)
    _validate_teacher(recipe)
    _validate_places(recipe.data, "losses.tokens_first", recipe.losses.tokens_first)
    if recipe.losses.tokens_first and not recipe.network.frame_tokens:
        raise RecipeError(
            f"losses.tokens_first: found {recipe.losses.tokens_first} with network.frame_tokens = 0, expected 0 with it"
        )
    frames, schedule = recipe.data.frames, recipe.schedule
    if frames < 2:
        raise RecipeError(f"data.frames: found {frames}, expected at least 2")
    if frames > recipe.network.max_frames:
        raise RecipeError(
            f"data.frames: found {frames}, expected at most network.max_frames = {recipe.network.max_frames}"
        )
    if schedule.prediction != "noise" or schedule.zero_terminal_snr:
        raise RecipeError(
            'schedule: expected prediction = "noise" without zero_terminal_snr: files of motion modules say no other'
        )
    if schedule.spacing == "cosine":
        raise RecipeError(
            'schedule.spacing: found "cosine", expected "roots" or "even": files of motion modules say no other'
        )


def _validate_conditions(recipe: VersVideoControlRecipe) -> None:
    names = recipe.conditions
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"conditions: found {list(names)}, expected at least one, and none twice")
    _validate_hints(recipe)


def _validate_hints(recipe: ControlRecipe | VersVideoControlRecipe) -> None:
    hints = recipe.hints
    if hints.low_threshold > hints.high_threshold:
        raise RecipeError(
            f"hints.low_threshold: found {hints.low_threshold}, expected at most hints.high_threshold = "
            f"{hints.high_threshold}"
        )


def _validate_image(network: ImageUNetConfig) -> None:
    _at_least_one("network.heads", network.heads)
    for width in _validate_levels(network).values():
        _multiple("network: width", width, network.norm_groups, "the groups of its norms")
        _multiple("network: width", width, network.heads, "network.heads")


def _validate_levels(network: TextToVideoUNetConfig | SpaceTimeUNetConfig | ImageUNetConfig) -> dict[int, int]:
    """What both layouts share; returns the width at every downsampling factor."""
    for key in ("in_channels", "model_channels", "num_res_blocks", "context_width", "norm_groups"):
        _at_least_one(f"network.{key}", getattr(network, key))
    if network.out_channels != network.in_channels:
        raise RecipeError(
            f"network.out_channels: found {network.out_channels}, expected network.in_channels = {network.in_channels}"
        )
    return _widths(network.model_channels, network.channel_mult, network.attention_factors)


def _widths(model_channels: int, channel_mult: tuple[float, ...], attention_factors: tuple[int, ...]) -> dict[int, int]:
    """The width at every downsampling factor."""
    if not channel_mult or min(channel_mult) < 1:
        raise RecipeError(
            f"network.channel_mult: found {list(channel_mult)}, expected a factor of at least 1 per level"
        )
    if model_channels < 2 or model_channels % 2:
        raise RecipeError(f"network.model_channels: found {model_channels}, expected an even number")
    levels = {2**level: round(model_channels * factor) for level, factor in enumerate(channel_mult)}
    for factor in attention_factors:
        if factor not in levels:
            raise RecipeError(
                f"network.attention_factors: found {factor}, expected the factors of {len(levels)} levels: "
                f"{', '.join(map(str, levels))}"
            )
    return levels


def _validate_places(data: Data, key: str, share: float) -> None:
    if share and data.kind != "moving_shapes":
        raise RecipeError(f"{key}: found {share} with data of kind {data.kind!r}, expected moving_shapes or 0")


def _validate_teacher(recipe: HarivoRecipe | ImageRecipe) -> None:
    if not recipe.teacher.path:
        return
    if recipe.data.kind != "moving_shapes":
        raise RecipeError(f"teacher.path: found it with data of kind {recipe.data.kind!r}, expected moving_shapes")
    if recipe.schedule.prediction != "noise":
        raise RecipeError(f"schedule.prediction: found {recipe.schedule.prediction!r}, a teacher predicts noise")


def _validate_preference(recipe: DiffusionRecipe) -> None:
    """Captions are taken apart and put together again; those of pictures say what a picture shows."""
    if not recipe.diffusion.caption_preference:
        return
    key, data, last = "diffusion.caption_preference", recipe.data, recipe.diffusion.last_time
    if recipe.task == "versvideo_control":
        raise RecipeError(f"{key}: found it with maps, which show the direction; expected 0")
    if recipe.task == "control":
        raise RecipeError(f"{key}: found it with single frames, which show no direction; expected 0")
    if recipe.task == "image" and not recipe.captions.places:
        raise RecipeError(
            f"{key}: found it with captions.places = 0, expected more: captions of pictures are preferred"
        )
    if data.kind != "moving_shapes":
        raise RecipeError(f"{key}: found it with data of kind {data.kind!r}, expected moving_shapes; or 0 here")
    start, steps = recipe.diffusion.preference_start, recipe.schedule.noise_schedule().steps
    if start >= steps:
        raise RecipeError(f"diffusion.preference_start: found {start}, expected less than the schedule's {steps} times")
    if start >= last:
        raise RecipeError(f"diffusion.preference_start: found {start}, expected less than diffusion.last_time = {last}")


def _validate_text(recipe: DenoiserRecipe) -> None:
    assert recipe.task != "mask"
    text = recipe.text_encoder
    if text.kind != "captions":
        return
    _multiple("text_encoder.width", text.width, text.heads, "text_encoder.heads")
    key = text_width_key(recipe)
    found = getattr(recipe.network, key)
    if text.width != found:
        raise RecipeError(f"network.{key}: found {found}, the text encoder has {text.width}")


def _validate_text_and_noise(recipe: DiffusionRecipe) -> None:
    schedule = recipe.schedule
    # Those around a frozen denoiser read text as it does, and mask models none.
    around = recipe.task == "harivo" or recipe.task == "control" or recipe.task == "versvideo_control"
    if not around and recipe.task != "mask":
        assert recipe.task != "harivo" and recipe.task != "control" and recipe.task != "versvideo_control"
        _validate_text(recipe)
    last, steps = recipe.diffusion.last_time, schedule.noise_schedule().steps
    if last > steps:
        raise RecipeError(f"diffusion.last_time: found {last}, expected at most the schedule's {steps} times")
    if schedule.linear_end >= 1:
        raise RecipeError(f"schedule.linear_end: found {schedule.linear_end}, expected less than 1")
    if schedule.linear_start >= schedule.linear_end:
        raise RecipeError(
            f"schedule.linear_start: found {schedule.linear_start}, expected less than schedule.linear_end = "
            f"{schedule.linear_end}"
        )


def _at_least_one(key: str, value: int) -> None:
    if value < 1:
        raise RecipeError(f"{key}: found {value}, expected at least 1")


def _multiple(key: str, value: int, factor: int, of: str) -> None:
    if value % factor:
        raise RecipeError(f"{key}: found {value}, expected a multiple of {factor} ({of})")
