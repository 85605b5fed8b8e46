"""What a recipe says of the losses of a 3D autoencoder, and of the windows that it begins on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import setting


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """The autoencoder's losses; the defaults are those of the released models."""

    reconstruction: Literal["l1", "l2"] = setting(
        "l1", doc="l1 as released, l2 as in the paper; l2 finds small objects on a plain background sooner"
    )
    perceptual: Literal["lpips", "gradients"] = setting(
        "lpips", doc="lpips: VGG16 features, weights from disk; gradients: multi-scale image gradients, no weights"
    )
    perceptual_weight: float = setting(1.0, minimum=0, doc="weight of the perceptual loss beside the reconstruction")
    kl_weight: float = setting(0.0, minimum=0, doc="weight of the divergence from a standard normal, per clip")
    adversarial_weight: float = setting(0.5, minimum=0, doc="factor on the adaptive weight of the adversarial loss")
    discriminator_start: int = setting(50001, minimum=0, doc="first step with the discriminator")
    discriminator_channels: tuple[int, ...] = setting(
        (64, 128, 256, 512), minimum=1, doc="widths of the patch discriminator's convolutions"
    )


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Training on windows around what differs from a clip's background, before whole frames."""

    size: int = setting(32, minimum=8, doc="height and width of the windows in pixels")
    steps: int = setting(0, minimum=0, doc="optimizer steps on windows; 0: whole frames from the start")
