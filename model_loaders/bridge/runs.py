"""Several samplings of one node: a MODEL with its text and walk, under one progress bar with previews."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .compat import latent_preview, sample, utils
from .model import VideoModel


class Progress:
    """One bar for all steps of a node."""

    def __init__(self, total: int) -> None:
        self.bar, self.done = utils.ProgressBar(total), 0

    def reach(self, done: int) -> None:
        """Steps that are done whatever was counted: samplers may report fewer than they take, files have some."""
        self.done = done
        self.bar.update_absolute(done)

    def after_step(self, model: object, shown: Sequence[int] | None = None) -> object:
        """ComfyUI's callback for a sampling of this MODEL; of its latents along time `shown` are in the preview."""
        latent_format = model.get_model_object("latent_format")  # type: ignore[attr-defined]
        previewer = latent_preview.get_previewer(model.load_device, latent_format)  # type: ignore[attr-defined]

        def callback(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
            self.done += 1
            seen = denoised if shown is None else denoised[:, :, list(shown)]
            picture = previewer.decode_latent_to_preview_image("JPEG", seen) if previewer else None
            self.bar.update_absolute(self.done, preview=picture)

        return callback


@dataclass(frozen=True)
class Run:
    """All that a sampling needs but its noise."""

    model: object
    positive: list
    negative: list
    cfg: float
    sampler: object
    sigmas: Tensor
    seed: int

    @property
    def steps(self) -> int:
        """Steps of one sampling."""
        return len(self.sigmas) - 1

    def given(self, **values: object) -> "Run":
        """The same with more in the conditioning of both branches of guidance."""
        positive, negative = (
            [[text, {**options, **values}] for text, options in part] for part in (self.positive, self.negative)
        )
        return replace(self, positive=positive, negative=negative)

    def __call__(
        self, noise: Tensor, progress: Progress, latent: Tensor | None = None, shown: Sequence[int] | None = None
    ) -> Tensor:
        """Noise -> sample of its shape, through ComfyUI's guider; from `latent` where the walk starts later.

        Of the latents along time `shown` are in the preview.
        """
        return sample.sample_custom(
            self.model,
            noise,
            self.cfg,
            self.sampler,
            self.sigmas,
            self.positive,
            self.negative,
            torch.zeros_like(noise) if latent is None else latent,
            callback=progress.after_step(self.model, shown),
            disable_pbar=True,
            seed=self.seed,
        )


def check_texts(model: object, *conditionings: list) -> None:
    """Refuse text of another width before anything is computed, where the MODEL is of this pack.

    Raises:
        ValueError: it comes from the text encoder of another model.
    """
    inner = model.model  # type: ignore[attr-defined]
    if not isinstance(inner, VideoModel):
        return
    config = inner.network_config
    width = getattr(config, "text_width", getattr(config, "context_width", None))
    for text, _ in (entry for part in conditionings for entry in part):
        if width is not None:
            inner.check_text(text, width)
