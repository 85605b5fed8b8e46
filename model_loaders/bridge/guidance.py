"""Guidance that any MODEL can be given: mitigating gradient, and a scale that changes while sampling.

Shapes: B videos, C channels, F frames, H, W latent size.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.sampling.curves import Curve, parse_curve
from ...kernels.sampling.mitigating_gradient import Form, mitigated
from .compat import patcher_extension, samplers

log = logging.getLogger(__name__)
_KEY = "weft_guidance"
_POSITIONS = 1000
"""Places of the sampling at which noise levels are looked up."""


@dataclass(frozen=True)
class MitigatingGradient:
    """A post-CFG function that draws neighbouring frames together."""

    alpha: float
    form: Form
    per_element: bool
    frames: int
    """Frames of a video where frames lie in the batch; 0: all of them."""
    first_sigma: float
    last_sigma: float
    _said: set[str] = field(default_factory=set)

    def __call__(self, arguments: dict[str, object]) -> Tensor:
        """The guided prediction of clean latents, (B, C, F, H, W) or ((B F), C, H, W)."""
        denoised, sigma, model = arguments["denoised"], arguments["sigma"], arguments["model"]
        assert isinstance(denoised, Tensor) and isinstance(sigma, Tensor)
        if not self.last_sigma < float(sigma.max()) <= self.first_sigma:
            return denoised
        ratio = noise_ratio(model.model_sampling, sigma)  # type: ignore[attr-defined]
        if denoised.ndim == 5:
            if denoised.shape[2] < 2:
                return self._untouched(denoised, "the latent has a single frame")
            return self._mitigated(denoised.transpose(1, 2), ratio).transpose(1, 2)
        if denoised.ndim != 4:
            return self._untouched(denoised, f"a latent of shape {tuple(denoised.shape)} is none of frames")
        rows = len(denoised)
        frames = self.frames or rows
        if rows % frames:
            self._say(f"{rows} frames in the batch are no multiple of {frames}: taken as one video")
            frames = rows
        if frames < 2:
            return self._untouched(denoised, "the latent has a single frame")
        return self._mitigated(denoised.unflatten(0, (-1, frames)), ratio[::frames]).flatten(0, 1)

    def _mitigated(self, videos: Tensor, ratio: Tensor) -> Tensor:
        return mitigated(videos, self.alpha, ratio, form=self.form, per_element=self.per_element)

    def _untouched(self, denoised: Tensor, reason: str) -> Tensor:
        self._say(f"without effect, {reason}")
        return denoised

    def _say(self, what: str) -> None:
        """Once for each patched MODEL, not at every step."""
        if what not in self._said:
            self._said.add(what)
            log.warning("Mitigating Gradient Guidance: %s.", what)


def noise_ratio(model_sampling: object, sigma: Tensor) -> Tensor:
    """Coefficient of the noise over that of the clean latent in a noisy one, for noise levels (B,) of any model.

    Infinite where nothing of the clean latent is left, as at the start of flow models.
    """
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    # Models may have changed what a level means: their own mixture tells.
    mix = model_sampling.noise_scaling  # type: ignore[attr-defined]
    return mix(sigma, one, zero).abs() / mix(sigma, zero, one).abs()


def mitigating_gradient(
    model: object, alpha: float, form: Form, per_element: bool, frames: int, start: float, end: float
) -> object:
    """The MODEL with mitigating-gradient guidance (HARIVO, Algorithm 1), after everything else that guides it.

    Args:
        model: any MODEL that makes videos.
        alpha: strength; 0 does nothing.
        form: `algorithm` as printed, or `exact`.
        per_element: as strong for each value at any latent size as at the paper's.
        frames: frames of a video where these lie in the batch; 0: all.
        start, end: shares of the sampling between which it acts.

    Raises:
        ValueError: a strength that is no number or negative, a range that ends before it starts.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}, expected a number from 0: 40 is the paper's.")
    if not 0 <= start <= end <= 1:
        raise ValueError(f"The guidance starts at {start} and ends at {end}, expected 0 <= start <= end <= 1.")
    sampling = model.get_model_object("model_sampling")  # type: ignore[attr-defined]
    # The last step counts: whole sampling means down to no noise at all.
    last = 0.0 if end == 1 else float(sampling.percent_to_sigma(end))
    first = math.inf if start == 0 else float(sampling.percent_to_sigma(start))
    patched = model.clone()  # type: ignore[attr-defined]
    patched.set_model_sampler_post_cfg_function(MitigatingGradient(alpha, form, per_element, frames, first, last))
    patched.add_wrapper_with_key(patcher_extension.WrappersMP.PREDICT_NOISE, _KEY, _mitigate_last)
    return patched


def _mitigate_last(
    executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, model_options: dict[str, object], seed: object
) -> Tensor:
    """Put it behind post-CFG functions of nodes that were connected after it: it needs what guidance comes to."""
    functions = model_options.get("sampler_post_cfg_function", [])
    assert isinstance(functions, list)
    ordered = sorted(functions, key=lambda function: isinstance(function, MitigatingGradient))
    return executor(x, timestep, {**model_options, "sampler_post_cfg_function": ordered}, seed)


def guidance_schedule(model: object, points: str, steps: bool) -> object:
    """The MODEL with a guidance scale that depends on how far the sampling is, whatever the sampler's cfg says.

    Args:
        model: any MODEL.
        points: `position: scale` pairs; positions from 0 (pure noise) to 1.
        steps: a scale holds until the next point, instead of a straight line between them.

    Raises:
        ValueError: points that cannot be read, or outside 0 to 1.
    """
    curve = parse_curve(points)
    if curve.frames[-1] > 1:
        raise ValueError(f"Found a point at {curve.frames[-1]:g}: positions go from 0 (pure noise) to 1 (the end).")
    if min(curve.values) < 0:
        raise ValueError(f"Found the scale {min(curve.values):g}, expected numbers from 0.")
    patched = model.clone()  # type: ignore[attr-defined]
    sampling = patched.get_model_object("model_sampling")
    # Falling noise levels; the first is what percent_to_sigma gives for "before everything".
    levels = [-float(sampling.percent_to_sigma(index / _POSITIONS)) for index in range(_POSITIONS + 1)]
    said: list[str] = []

    def guided(
        executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, model_options: dict[str, object], seed: object
    ) -> Tensor:
        guider = executor.class_obj  # type: ignore[attr-defined]
        if type(guider).predict_noise is not samplers.CFGGuider.predict_noise or not guider.conds.get("negative"):
            if not said:
                said.append("once")
                log.warning("Guidance Schedule: without effect, %s has no single scale.", type(guider).__name__)
            return executor(x, timestep, model_options, seed)
        before, guider.cfg = guider.cfg, scale_at(curve, _position(levels, float(timestep.max())), steps)
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = before

    patched.add_wrapper_with_key(patcher_extension.WrappersMP.PREDICT_NOISE, _KEY, guided)
    return patched


def scale_at(curve: Curve, position: float, steps: bool) -> float:
    """The scale at a position of the sampling: on the line between two points, or of the last point passed."""
    if not steps:
        return curve.at(position)
    return curve.values[max(0, bisect_right(curve.frames, position + 1e-9) - 1)]


def _position(levels: list[float], sigma: float) -> float:
    """Share of the sampling that lies before a noise level; `levels` are negative and rise."""
    return max(0, bisect_right(levels, -sigma) - 1) / _POSITIONS if sigma > 0 else 1.0
