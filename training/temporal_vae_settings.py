"""What a recipe says of a temporal decoder and its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The network behind the decoder; its sides are divided by 2 for every level but the first."""

    channels: int = setting(64, minimum=1, doc="width of its first level")
    mult: tuple[float, ...] = setting((1, 2, 4), minimum=1, doc="width of each level in widths of the first")
    blocks: int = setting(2, minimum=1, doc="residual blocks of a level going down; there is one more going up")


@dataclass(frozen=True, kw_only=True)
class TemporalVAELoss:
    """The temporal decoder's losses: those of a VQ-GAN, and consistency with the encoder (VersVideo section 3.3)."""

    perceptual: Literal["lpips", "gradients"] = setting(
        "lpips", doc="lpips: VGG16 features, weights from disk; gradients: multi-scale image gradients, no weights"
    )
    perceptual_weight: float = setting(1.0, minimum=0, doc="weight of the perceptual loss beside the absolute error")
    adversarial_weight: float = setting(0.8, minimum=0, doc="factor on the adaptive weight of the adversarial loss")
    discriminator_start: int = setting(0, minimum=0, doc="first step with the discriminator")
    discriminator_channels: tuple[int, ...] = setting(
        (64, 128, 256, 512), minimum=1, doc="widths of the discriminator's convolutions, on patches of clips"
    )
    consistency_weight: float = setting(
        1e-4,
        minimum=0,
        doc="weight of the squared distance of the decoder's compensated features from the encoder's; needs Stable "
        "Diffusion's layout, in which they have the same sizes",
    )
