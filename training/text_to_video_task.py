"""Training a text-to-video UNet and its caption encoder on cached latents: predict the noise (LVDM section 4.4).

Shapes: B clips, N tokens, Z latent channels, T, H, W latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.layers.attention import CrossAttention, FeedForward
from ..kernels.layers.resnet import ResidualBlock
from ..kernels.layers.temporal import RelativePositions, TemporalAttention, TemporalConvolution
from ..kernels.networks.higen import HiGenUNet, SpaceTimeUNet, Transformer
from ..kernels.networks.lvdm import SpaceTimeTransformer, TextToVideoUNet
from ..kernels.networks.show1 import JointAttention
from ..kernels.sampling.schedules import NoiseSchedule, add_noise, velocity
from ..model_loaders.checkpoint import MODEL
from . import checkpoints
from .config import AddedRecipe, DiffusionRecipe, ExpertRecipe, MaskRecipe, Show1Recipe, TextToVideoRecipe
from .data.captions import Split, with_other_directions
from .data.clips import Clips, alike, open_clips, stack_videos, to_pixels
from .distributed import drawn, gathered, mean_of_all, noise_like, own, size
from .first_stage import latent_layout, load_autoencoder
from .initial_weights import start_from
from .latents import FrameFeatures, Latents, encode_clips, fit_preview
from .operations import TrainingOperations
from .preference import OtherCaptions, OtherClips, preference_loss
from .sections import ImageFirstStage, frame_size
from .settings import RecipeError, Table
from .start_settings import DenoiserStart
from .task import Batch, Losses, RareClips
from .text import EncodedTexts, TextEncoder, open_text_encoder
from .validate import text_width_key

VALIDATION_TIMES = range(50, 1000, 100)
PREVIEW_CLIPS = 32
LARGEST_WEIGHT = 4.0
"""Of a clip beside the others of its batch, however faint its objects are."""


class TextToVideoTask:
    """Squared error of the predicted noise at a random time, some captions left out for guidance."""

    _cache: Path | None = None
    """Where latents and encoded captions are kept, by tasks that have latents."""
    role = MODEL
    """Of the trained denoiser among the networks."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        folder: Path,
        device: torch.device,
        mixed: bool,
        frame_features: FrameFeatures | None = None,
    ) -> None:
        self.recipe, self.device, self._frame_features = recipe, device, frame_features
        self.schedule = recipe.schedule.noise_schedule()
        diffusion = recipe.diffusion
        self.weights = p2_weights(self.schedule, diffusion.p2_k, diffusion.p2_gamma, diffusion.last_time).to(device)
        self._mixed = mixed
        self._open_first_stage(folder)
        self.clips, held_out = open_clips(recipe.data, "train"), open_clips(recipe.data, "held_out")
        wanted = recipe.pixels.clips if isinstance(recipe, Show1Recipe) else recipe.autoencoder.clips
        clip_count = min(wanted or len(self.clips), len(self.clips))
        texts = self.clips.texts(clip_count)
        self._check_captions(texts)
        self._rare(texts)
        text = self._open_text(texts)
        self._check_width(text.width)
        self._tokens_of = text.tokens
        self.train_latents = self._encode(self.clips, "train", clip_count)
        self.held_out_latents = self._encode(held_out, "held_out", min(recipe.run.validation_clips, len(held_out)))
        self.clip_count = len(self.train_latents)
        self.rare_clips = self._find_rare_clips()

        self.text_encoder = text.network.to(device)
        frozen = not any(weight.requires_grad for weight in self.text_encoder.parameters())
        self._encoded = EncodedTexts(self.text_encoder, self._cache) if frozen else None
        self.tokens = text.tokens(self.train_latents.captions)
        self._others = self._open_others(text) if diffusion.caption_preference else None
        self.unet = self._build_network().to(device)
        self.held_out_tokens = text.tokens(self.held_out_latents.captions)
        self.empty_tokens = text.tokens([""])[0].to(device)
        self.networks: dict[str, nn.Module] = {self.role: self.unet}
        if text.saved:
            self.networks["text_encoder"] = self.text_encoder
        self.companions: dict[str, nn.Module] = {}
        self.facts: Table = self._measure()
        if recipe.initialization.weights and not checkpoints.exist(folder):
            self.facts |= start_from(Path(recipe.initialization.weights), self.networks)

    def encode_captions(self) -> int:
        """Leave the captions' encodings beside the latents, where their encoder is frozen; returns how many."""
        if self._encoded is None or self._cache is None or not list(self.text_encoder.parameters()):
            return 0
        tokens = torch.cat([self.tokens, self.held_out_tokens, self.empty_tokens[None].cpu()])
        return self._encoded.write(tokens)

    def _open_first_stage(self, folder: Path) -> None:
        """What makes latents of clips, and where these are kept."""
        assert not isinstance(self.recipe, Show1Recipe)
        stage = self.recipe.autoencoder
        self.autoencoder = load_autoencoder(stage, folder)
        self._check_latents()
        self._cache = Path(stage.cache) if stage.cache else folder / "latents"

    def _check_captions(self, captions: list[str]) -> None:
        if not any(captions):
            raise RecipeError("data: none of the clips has a caption; expected captions.jsonl or a .txt for each video")

    def _open_text(self, captions: list[str]) -> TextEncoder:
        assert not isinstance(self.recipe, AddedRecipe | MaskRecipe)
        return open_text_encoder(self.recipe.text_encoder, self.recipe.data, captions)

    def _open_others(self, text: TextEncoder) -> OtherCaptions:
        """What captions are preferred to."""
        return OtherClips(self.train_latents.captions, text.tokens, with_other_directions)

    def _build_network(self) -> nn.Module:
        network: nn.Module
        if isinstance(self.recipe, ExpertRecipe):
            network = SpaceTimeUNet(self.recipe.network, operations=TrainingOperations)
        else:
            assert isinstance(self.recipe, TextToVideoRecipe)
            network = TextToVideoUNet(self.recipe.network, operations=TrainingOperations)
        initialize_denoiser(network, self.recipe.initialization)
        return network

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer for all networks."""
        parts = [part for network in self.networks.values() for part in network.parameters()]
        return {"denoiser": [part for part in parts if part.requires_grad]}

    def batch(self, indices: Tensor, epochs: Tensor) -> Batch:
        """Moments (B, Z, T, H, W) twice, tokens (B, N) and what cues are made of, the same in every epoch."""
        numbers = alike(indices.tolist(), self.train_latents.borders())
        return *self.train_latents.take(numbers), self.tokens[numbers], *self._extras(self.train_latents, numbers)

    def losses(self, batch: Batch, step: int) -> Losses:
        """Weighted mean squared error of the noise or velocity.

        Half of a weight is how often a time is drawn, half is a factor: the same mean as with uniform times, and
        gradients that differ less from batch to batch.
        """
        mean, logvar, tokens, *extras = batch
        latents = self._sample(mean, logvar, noise_like(mean))
        return self._objective(latents, tokens, **self._cues(latents, step, *extras))

    def _objective(self, latents: Tensor, tokens: Tensor, **cues: Tensor) -> Losses:
        preference = self._preference(latents, tokens, **cues)
        times, tokens, noise = self._draw(latents, tokens)
        errors = self._loss(self.networks, latents, tokens, times, noise, **cues)
        losses = Losses({"denoiser": self._weighted(errors, times, latents)}, {"loss": errors.mean()})
        return losses if preference is None else self._with_preference(losses, preference)

    def _preference(self, latents: Tensor, tokens: Tensor, **cues: Tensor) -> Tensor | None:
        """Loss of some clips with their captions and with others, on the same noise.

        At times when little is left of the clip. Where it still shows, wrong captions would get worse instead of own
        ones better.
        """
        settings = self.recipe.diffusion
        if self._others is None:
            return None
        rows, others = self._others.draw(gathered(tokens), settings.preference_clips)
        if not len(rows):
            return None
        times = torch.randint(settings.preference_start, len(self.weights), (len(rows),), device=self.device)
        noise = self._with_offset(torch.randn(len(rows), *latents.shape[1:], device=self.device))
        # Each process has some of them; one without any tries a clip for nothing, so that all do the same.
        places = rows - own(torch.arange(len(latents) * size(), device=rows.device))[0]
        here = ((places >= 0) & (places < len(latents))).nonzero()[:, 0]
        share, here = len(here) * size() / len(rows), here if len(here) else here.new_zeros(1)
        places = places[here].clamp(0, len(latents) - 1)
        clips, kept = latents[places], {name: cue[places] for name, cue in cues.items()}
        errors = (
            self._loss(self.networks, clips, caption, times[here], noise[here], **kept)
            for caption in (tokens[places], others[here])
        )
        return share * preference_loss(*errors)

    def _with_preference(self, losses: Losses, preference: Tensor) -> Losses:
        total = losses.objectives["denoiser"] + self.recipe.diffusion.caption_preference * preference
        return Losses({"denoiser": total}, losses.metrics | {"preference": preference})

    def _draw(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times (B,), tokens of which some are the empty caption's, and noise."""
        count, odds = len(latents), self.weights.sqrt()
        times = drawn(lambda rows: torch.multinomial(odds, rows, replacement=True), count)
        chances = drawn(lambda rows: torch.rand(rows, 1, device=self.device), count)
        tokens = torch.where(chances < self.recipe.diffusion.caption_dropout, self.empty_tokens, tokens)
        shape = latents.shape[1:]
        noise = drawn(lambda rows: self._with_offset(torch.randn(rows, *shape, device=self.device)), count)
        return times, tokens, noise

    def _weighted(self, errors: Tensor, times: Tensor, latents: Tensor) -> Tensor:
        """Mean of errors (B,) with the rest of their times' weights, and those of their contrast."""
        factors = self.weights.sqrt().mean() * self.weights[times].sqrt()
        factors = factors * contrast_weights(latents, self.recipe.diffusion.contrast_power)
        return (factors * errors).mean()

    def before_step(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """The loss on held-out captions over fixed times and noise."""
        if not len(self.held_out_latents):
            return {}
        # Of all sizes the first: a validation is one batch.
        numbers = list(range(self.held_out_latents.borders()[1]))
        mean, logvar = self.held_out_latents.take(numbers)
        kept = (self.held_out_tokens[numbers], *self._extras(self.held_out_latents, numbers))
        losses = []
        for time in VALIDATION_TIMES:
            if time >= len(self.weights):
                break
            generator = torch.Generator().manual_seed(time)
            draws = [torch.randn(mean.shape, generator=generator) for _ in range(2)]
            for batch in zip(
                *(part.split(self.recipe.run.batch_size) for part in (mean, logvar, *draws, *kept)), strict=True
            ):
                means, logvars, posterior_noise, noise, words, *extras = (part.to(self.device) for part in batch)
                times = torch.full((len(words),), time, device=self.device)
                clean = self._sample(means, logvars, posterior_noise)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
                    losses.append(self._loss(networks, clean, words, times, noise, **self._cues(clean, None, *extras)))
        return {"loss": float(torch.cat(losses).mean())}

    def _extras(self, latents: Latents, numbers: list[int]) -> tuple[Tensor, ...]:
        """What is kept beside the latents of some clips and needed for their cues."""
        return ()

    def _cues(self, latents: Tensor, step: int | None, *extras: Tensor) -> dict[str, Tensor]:
        """Inputs of the network beside noise and text, at a step of the training or (None) after it."""
        return {}

    def _loss(
        self,
        networks: dict[str, nn.Module],
        latents: Tensor,
        tokens: Tensor,
        times: Tensor,
        noise: Tensor,
        **cues: Tensor,
    ) -> Tensor:
        """Squared error per clip (B,); cues go to the network."""
        noisy = add_noise(self.schedule, latents, times, noise)
        context = self._encode_text(networks, tokens)
        predicted = self._predict(networks[self.role], noisy, times, context, **cues)
        return self._errors(predicted, latents, times, noise)

    def _encode_text(self, networks: dict[str, nn.Module], tokens: Tensor) -> Tensor:
        """Tokens (B, N) -> (B, N, D); each caption once, where its encoder stays as it is."""
        if self._encoded is not None:
            return self._encoded(tokens)
        encoded: Tensor = networks.get("text_encoder", self.text_encoder)(tokens)
        return encoded

    def _predict(self, network: nn.Module, noisy: Tensor, times: Tensor, context: Tensor, **cues: Tensor) -> Tensor:
        predicted: Tensor = network(noisy, times, context, **cues)
        return predicted

    def _errors(self, predicted: Tensor, latents: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the noise or velocity per clip (B,)."""
        target = noise if self.schedule.prediction == "noise" else velocity(self.schedule, latents, times, noise)
        return F.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3, 4))

    def _with_offset(self, noise: Tensor) -> Tensor:
        """Noise (B, Z, T, H, W) shifted by what the pixels of a frame share."""
        if not self.schedule.offset_noise:
            return noise
        return noise + self.schedule.offset_noise * torch.randn_like(noise[..., :1, :1])

    def _sample(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """Diffusion latents drawn from the posterior."""
        drawn = mean.float() + (0.5 * logvar.float()).exp() * noise
        return (drawn + self.facts["shift"]) * self.facts["scale"]

    def _encode(self, clips: Clips, split: Split, count: int) -> Latents:
        data, cache = self.recipe.data, self._cache
        assert cache is not None
        return encode_clips(
            self.autoencoder, data, clips, split, count, cache, self.device, self._mixed, self._frame_features
        )

    def _measure(self) -> Table:
        """The latent space: pixels and frames per latent, scale and shift, and the colours of a preview."""
        data = self.recipe.data
        scale, shift = self._scale_and_shift()
        shown = min(PREVIEW_CLIPS, self.train_latents.borders()[1])
        videos, _ = stack_videos(self.clips, self.train_latents.indices[:shown])
        mean, _ = self.train_latents.take(list(range(len(videos))))
        factors, bias = fit_preview(scale * (mean.float() + shift), to_pixels(videos))
        return {
            "spatial": frame_size(data)[1] // mean.shape[-1],
            "temporal": data.frames // mean.shape[2],
            "scale": scale,
            "shift": shift,
            "rgb_factors": factors,
            "rgb_bias": bias,
        }

    def _scale_and_shift(self) -> tuple[float, float]:
        assert not isinstance(self.recipe, Show1Recipe)
        stage = self.recipe.autoencoder
        return (stage.scale, 0.0) if isinstance(stage, ImageFirstStage) else self.train_latents.scale_and_shift()

    def _check_latents(self) -> None:
        """Before anything is encoded: whether clips fit the autoencoder and its latents the network."""
        data = self.recipe.data
        channels, (frames, *sizes) = latent_layout(self.autoencoder)
        key, found = self._network_channels()
        if found != channels:
            raise RecipeError(f"{key}: found {found}, the autoencoder has {channels}")
        sides = [(key, side, max(sizes)) for key, side in data.sides.items()]
        for key, found, factor in (("frames", data.frames, frames), *sides):
            if found % factor:
                raise RecipeError(f"data.{key}: found {found}, the autoencoder takes multiples of {factor}")

    def _network_channels(self) -> tuple[str, int]:
        """Channels that the network reads, and the setting that says so."""
        assert not isinstance(self.recipe, AddedRecipe)
        return "network.in_channels", self.recipe.network.in_channels

    def _rare(self, captions: list[str]) -> Tensor:
        """Which captions are seldom shown at first, (captions,) bool; RecipeError when that is none or all of them."""
        texts = self.recipe.rare.containing
        for text in texts:
            if not any(text in caption for caption in captions):
                raise RecipeError(f"rare.containing: no caption contains {text!r}")
        which = torch.tensor([any(text in caption for text in texts) for caption in captions])
        if which.all():
            raise RecipeError("rare.containing: every caption is one of them, none is left to be shown at first")
        return which

    def _find_rare_clips(self) -> RareClips | None:
        rare, run = self.recipe.rare, self.recipe.run
        per_step = run.batch_size * run.accumulation
        if not rare.containing:
            return None
        return RareClips(
            self._rare(self.train_latents.captions), rare.share, rare.start * per_step, rare.end * per_step
        )

    def _check_width(self, text_width: int) -> None:
        assert not isinstance(self.recipe, AddedRecipe)
        key = text_width_key(self.recipe)
        found = getattr(self.recipe.network, key)
        if found != text_width:
            raise RecipeError(f"network.{key}: found {found}, the text encoder has {text_width}")


def p2_weights(schedule: NoiseSchedule, k: float, gamma: float, last_time: int | None = None) -> Tensor:
    """Loss weight of every time before the last one, mean 1: 1 / (k + SNR)^gamma (Choi et al. 2022, arXiv 2204.00227,
    Eq. 8).

    Where things are and where they go is decided at low signal-to-noise ratios, where the plain error hardly shows it.
    """
    alpha = schedule.alphas_cumprod()[:last_time]
    weights = (k + alpha / (1.0 - alpha)) ** -gamma
    return (weights / weights.mean()).float()


def contrast_weights(latents: Tensor, power: float) -> Tensor:
    """Loss weight of each clip of a batch (B, Z, T, H, W), (B,): its contrast to minus `power`, over the batch's mean.

    Contrast is the largest squared distance of a latent from the clip's median one. Where it is small, so are errors of
    what is shown: objects over a dark background get their colour, and hardly their shape.
    """
    places = latents.flatten(2)
    contrast = (places - places.median(dim=2, keepdim=True).values).square().sum(dim=1).amax(dim=1)
    weights = contrast.clamp(min=1e-6) ** -power
    return (weights / mean_of_all(weights.mean())).clamp(max=LARGEST_WEIGHT)


def initialize_denoiser(network: nn.Module, settings: DenoiserStart | None = None) -> None:
    """Start every residual branch at zero and position tables Xavier-uniform, as the released models did.

    Text and temporal attention stand inside a branch: they may start with a strong effect.
    """
    settings = settings or DenoiserStart()
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            # They alone bring HiGen's cues into the features.
            if settings.temporal == "zero" or not isinstance(network, HiGenUNet):
                _zero(module.conv2)
        elif isinstance(module, SpaceTimeTransformer | Transformer):
            _zero(module.project_out)
        elif isinstance(module, TemporalConvolution) and settings.temporal == "zero":
            _zero(module.convs[-1])
        elif isinstance(module, HiGenUNet):
            _zero(module.prior_in)
            _start_cues(module, settings)
            for reader in module.resampler.modules():
                if isinstance(reader, CrossAttention):
                    reader.query.weight.data.mul_(settings.text_focus)
        elif isinstance(module, TemporalAttention) and settings.temporal == "zero":
            _zero(module.out)
        elif isinstance(module, RelativePositions):
            nn.init.xavier_uniform_(module.table.weight, gain=settings.position_gain)
        elif isinstance(module, CrossAttention):
            module.out.weight.data.mul_(settings.text_gain)
        elif isinstance(module, JointAttention):
            _, values = module.text_key_value.weight.data.chunk(2)
            values.mul_(settings.text_gain)
        elif isinstance(module, FeedForward):
            module.inner.weight.data.mul_(settings.feed_forward_gain)
    _zero(network.get_submodule("conv_out"))


def _start_cues(network: HiGenUNet, settings: DenoiserStart) -> None:
    """Rows of similarities tell HiGen's frames apart, beside the ends that its temporal convolutions see."""
    appearance = network.appearance_embedding
    if settings.temporal == "zero":
        _zero(network.motion_embedding.out)
        _zero(appearance.out)
        return
    for layer in (appearance.hidden, appearance.out):
        layer.weight.data.mul_(settings.position_gain)
    # What similarities lack to one counts: their common part would drown it.
    appearance.hidden.bias.data.copy_(-appearance.hidden.weight.data.sum(dim=1))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
