"""A trained HiGen that teaches an image model, or motion for one.

Between its prediction and the noise lies all that a caption and noisy frames leave open. Without that, what a word does
shows in a hundredth of the examples. And it can be asked what another caption would make of the same noise.

Shapes: B clips, N tokens, Z latent channels, T, H, W latents; pictures are clips of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.analysis.content import measured_motion
from ..kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from ..kernels.networks.higen import HiGenUNet
from ..kernels.sampling.schedules import NoiseSchedule, add_noise, denoised_of, sigma_of
from ..model_loaders.checkpoint import MODEL, TEXT_ENCODER
from .data.clips import Clips
from .data.moving_shapes import MovingShapes
from .opened import open_networks
from .preference import OtherClips
from .settings import RecipeError, Table
from .teacher_settings import TeacherSettings
from .text import caption_tokens

KEY = "teacher.path"


class Teacher:
    """Says what noise there is in what a model sees, for captions of clips."""

    def __init__(
        self,
        settings: TeacherSettings,
        schedule: NoiseSchedule,
        channels: int,
        text: CaptionEncoderConfig,
        captions: Sequence[str],
        others: Callable[[str], list[str]],
        device: torch.device,
    ) -> None:
        """`captions` of the training set and `others` that it may also be asked about; `channels` of latents.

        Raises RecipeError when the file holds no HiGen that reads such latents and captions of this length.
        """
        opened = open_networks(Path(settings.path))
        unet, encoder = opened.networks.get(MODEL), opened.networks.get(TEXT_ENCODER)
        if not isinstance(unet, HiGenUNet) or not isinstance(encoder, CaptionEncoder):
            found = ", ".join(type(network).__name__ for network in opened.networks.values()) or "nothing"
            raise RecipeError(f"{KEY}: {settings.path} holds {found}, expected a HiGenUNet and its CaptionEncoder")
        if unet.config.in_channels != channels:
            raise RecipeError(
                f"{KEY}: {settings.path} reads {unet.config.in_channels} latent channels, the recipe's autoencoder has "
                f"{channels}; expected a HiGen on latents of the same autoencoder"
            )
        if encoder.config.max_tokens != text.max_tokens:
            raise RecipeError(
                f"{KEY}: {settings.path} reads {encoder.config.max_tokens} tokens, the recipe's text encoder "
                f"{text.max_tokens}; expected the same"
            )
        self.settings, self.unet, self.encoder = settings, unet.to(device), encoder.to(device)
        self.schedule, self.own_schedule = opened.schedule, schedule
        self.scale, self.shift = opened.facts["scale"], opened.facts["shift"]
        # Times of the same noise, each under the teacher's own number.
        own, theirs = schedule.alphas_cumprod().logit(), opened.schedule.alphas_cumprod().clamp(1e-9).logit()
        self.times = (own[:, None] - theirs).abs().argmin(dim=1).to(device)
        numbers = {term: number for number, term in enumerate(encoder.config.tokens)}
        self.words = torch.tensor([numbers.get(term, -1) for term in text.tokens], device=device)
        """Its number of each word of the model; -1 for those that it does not know."""
        self.moves = text.tokens.index("moves")
        self.others = OtherClips(list(dict.fromkeys(captions)), lambda texts: caption_tokens(text, texts), others)

    def choose(self, tokens: Tensor, familiar: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (B, N), some exchanged for others, and whether clips are taught (B,).

        They are if it is `familiar` (B,) with them and knows the words: it has read captions of clips alone.
        """
        taught = familiar & (tokens == self.moves).any(dim=1) & (self.words[tokens] >= 0).all(dim=1)
        rows, others = self.others.draw(tokens, len(tokens))
        changed = taught[rows] & (torch.rand(len(rows), device=tokens.device) < self.settings.other_captions)
        tokens = tokens.clone()
        tokens[rows[changed]] = others[changed]
        return tokens, taught

    def weights(self, taught: Tensor) -> Tensor:
        """Of the errors of clips that are taught or not (B,)."""
        return torch.where(taught, self.settings.weight, 1.0)

    def targets(
        self, latents: Tensor, times: Tensor, noise: Tensor, tokens: Tensor, taught: Tensor, facts: Table
    ) -> Tensor:
        """The noise (B, Z, T, H, W) that is to be predicted: what the teacher says where it teaches, else the true one.

        Args:
            latents, times, noise, tokens: of the model, whose latents have the scale and shift of `facts`.
            taught: from `choose`.
        """
        target = noise.clone()
        if taught.any():
            known = latents[taught] / facts["scale"] - facts["shift"]
            clean = self._clean(known, times[taught], noise[taught], tokens[taught])
            sigma = _column(sigma_of(self.own_schedule.alphas_cumprod().to(latents)[times[taught]]), latents)
            target[taught] += facts["scale"] * (known - clean) / sigma
        return target

    @torch.no_grad()
    def _clean(self, latents: Tensor, times: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
        """Predicted clips; they and the true ones as the autoencoder has them, noised as the teacher scales them."""
        times = self.times[times]
        scaled = (latents + self.shift) * self.scale
        cues = {}
        if scaled.shape[2] > 1:
            cues = {"prior": scaled[:, :, scaled.shape[2] // 2], "motion": measured_motion(scaled.transpose(1, 2))}
        noisy = add_noise(self.schedule, scaled, times, noise)
        predicted = self.unet(noisy, times, self.encoder(self.words[tokens]), **cues)
        sigma = _column(sigma_of(self.schedule.alphas_cumprod().to(scaled)[times]), scaled)
        return denoised_of(self.schedule, scaled + sigma * noise, sigma, predicted) / self.scale - self.shift


def open_teacher(
    settings: TeacherSettings,
    schedule: NoiseSchedule,
    channels: int,
    text: nn.Module,
    captions: Sequence[str],
    others: Callable[[str], list[str]],
    device: torch.device,
) -> Teacher | None:
    """The teacher of a recipe that has one; RecipeError when the text encoder (a network) does not read words."""
    if not settings.path:
        return None
    if not isinstance(text, CaptionEncoder):
        raise RecipeError(f"{KEY}: found it with a text encoder that is no caption encoder, expected none")
    return Teacher(settings, schedule, channels, text.config, captions, others, device)


def familiar_clips(settings: TeacherSettings, clips: Clips, count: int) -> Tensor:
    """Which of the first clips of Moving Shapes are drawn in a style that the teacher knows, (count,)."""
    assert isinstance(clips, MovingShapes)
    return torch.tensor([clips.clip(index).style in settings.styles for index in range(count)])


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) for clips (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
