"""DPM-Solver++ of second order in steps (arXiv 2211.01095, Algorithm 2), as pixel and latent cascades release it.

Shapes: B videos, C channels, T frames, H, W size; S sampling steps.
"""

import torch
from torch import Tensor

from .schedules import NoiseSchedule

LEAST_LOG_SNR = -5.1
"""Half the log of signal over noise at which walks on the cosine schedule begin; behind it there is hardly a signal."""
FEWEST_STEPS_OF_SECOND_ORDER = 15
"""Walks of fewer steps end with one of first order."""
_QUANTILE = 0.95


def dpm_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Timesteps (S,) of the release, descending: equally spaced, the last of them above 0.

    Raises:
        ValueError: more steps than there are timesteps, or none.
    """
    usable = schedule.steps
    if schedule.spacing == "cosine":
        usable = int((-schedule.sigmas().log() >= LEAST_LOG_SNR).sum())
    if not 1 <= steps < usable:
        raise ValueError(f"DPM-Solver++ takes 1 to {usable - 1} steps on this schedule, found {steps}.")
    grid = torch.linspace(0, usable - 1, steps + 1, dtype=torch.float64)
    return grid.round().long().flip(0)[:-1]


def dpm_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Noise levels (S + 1,) of that walk; the last step ends at the level of abar[0], not at zero."""
    levels = schedule.sigmas()
    return torch.cat([levels[dpm_timesteps(schedule, steps)], levels[:1]])


def thresholded(denoised: Tensor, largest: float) -> Tensor:
    """Dynamic thresholding (arXiv 2205.11487, section 2.3) of every frame by itself; same shape and type.

    Args:
        denoised: predicted clean videos (B, C, T, H, W), after guidance.
        largest: no frame is divided by more than this; 1 clamps to -1..1.
    """
    if largest <= 1.0:
        return denoised.clamp(-1.0, 1.0)
    # One frame at a time: torch sorts a limited number of values.
    frames = denoised.transpose(1, 2).flatten(2).abs().float()
    bounds = torch.stack([frame.quantile(_QUANTILE) for video in frames for frame in video])
    bounds = bounds.clamp(1.0, largest).view(len(denoised), 1, -1, 1, 1).to(denoised.dtype)
    return denoised.clamp(-bounds, bounds) / bounds


class DPMSolver:
    """The steps of one walk, in variance-exploding scale x = x_0 + sigma * eps.

    The first step of a walk is of first order; so is the last one, which ends at `end`, where walks are short.
    """

    def __init__(self, end: float, steps: int, threshold: float = 0.0) -> None:
        """`steps`: of the whole walk, also where a part is done; `threshold` as in `thresholded`, or 0 for none."""
        self.end, self.ends_first_order = end, steps < FEWEST_STEPS_OF_SECOND_ORDER
        self.threshold = threshold
        self.previous: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """x, denoised: same shape; sigma, sigma_next: scalars -> x at `sigma_next`, which is above zero."""
        clean = thresholded(denoised, self.threshold) if self.threshold else denoised
        step = (sigma.double() / sigma_next.double()).log()
        direction = clean
        last = self.ends_first_order and bool(sigma_next <= self.end * (1 + 1e-4))
        if self.previous is not None and not last:
            before, earlier = self.previous
            ratio = step / (before.double() / sigma.double()).log()
            direction = clean + (0.5 * ratio).to(x.dtype) * (clean - earlier)
        self.previous = (sigma, clean)
        kept = (sigma_next.double() / sigma.double()).to(x.dtype)
        return kept * x + (1 - kept) * direction
