"""DPM-Solver++ with guidance, without ComfyUI.

Shapes: B videos, C channels, T frames, H, W size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.sampling.dpm_solver import DPMSolver, dpm_sigmas, dpm_timesteps
from ..kernels.sampling.schedules import NoiseSchedule, denoised_of


def walk(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    noise: Tensor,
    steps: int,
    guidance: float,
    threshold: float = 0.0,
    start: tuple[Tensor, float] | None = None,
) -> Tensor:
    """A sample like `noise` (B, C, T, H, W).

    Args:
        predict: noisy videos (B, ...) at timesteps (2B,) -> predictions with text and, behind them, without (2B, ...).
        schedule: of the network.
        noise: as above.
        steps: of the whole walk.
        guidance: scale of what the text adds.
        threshold: as in `thresholded`, or 0 for none.
        start: a clean video and the share of the steps that is done on it, from the end (SDEdit, arXiv 2108.01073).

    Raises:
        ValueError: more steps than the schedule has.
    """
    times, sigmas = dpm_timesteps(schedule, steps), dpm_sigmas(schedule, steps)
    x = noise * float((1 + sigmas[0] ** 2).sqrt())
    if start is not None:
        clean, share = start
        skipped = steps - max(1, int(steps * share))
        times, sigmas = times[skipped:], sigmas[skipped:]
        x = clean + float(sigmas[0]) * noise
    solver = DPMSolver(float(sigmas[-1]), steps, threshold)
    for time, sigma, sigma_next in zip(times.tolist(), sigmas, sigmas[1:], strict=False):
        scaled = x / float((1 + sigma**2).sqrt())
        with_text, without = predict(scaled, torch.full((2 * len(x),), time, device=x.device)).chunk(2)
        guided = without + guidance * (with_text - without)
        x = solver(x, denoised_of(schedule, x, sigma.float(), guided), sigma, sigma_next)
    # Back from the scale of the solver: the last level is that of the first timestep, not zero.
    return x / float((1 + sigmas[-1] ** 2).sqrt())
