"""Noise schedules and the tables of the released samplers, in float64.

Shapes: S sampling steps; tables of length `steps` over the diffusion time 0..steps-1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Spacing = Literal["roots", "even", "cosine"]
_LARGEST_COSINE_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule, mostly linear in the square root of beta (LVDM section 3.2).

    Attributes:
        linear_start, linear_end: first and last beta.
        steps: length of the diffusion.
        zero_terminal_snr: stretched so that nothing is left of the signal at the last step (arXiv 2305.08891, alg. 1).
        offset_noise: added to the noise of videos, one draw for each channel and frame, times this.
        prediction: what networks predict on it: the noise, or the velocity sqrt(abar) noise - sqrt(1 - abar) x_0.
        spacing: whether square roots of betas are equally spaced, or betas (AnimateDiff, HARIVO); or that of the
            cosine schedule (arXiv 2102.09672, eq. 17; DeepFloyd IF, Show-1), which has no first and last beta.
        eta: noise that the released DDIM adds at each step, 0 to 1.
    """

    linear_start: float = 0.0015
    linear_end: float = 0.0155
    steps: int = 1000
    zero_terminal_snr: bool = False
    prediction: Literal["noise", "velocity"] = "noise"
    offset_noise: float = 0.0
    spacing: Spacing = "roots"
    eta: float = 1.0

    def betas(self) -> Tensor:
        """beta_t, (steps,), before any stretching."""
        if self.spacing == "cosine":
            time = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
            signal = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            return (1 - signal[1:] / signal[:-1]).clamp(max=_LARGEST_COSINE_BETA)
        if self.spacing == "even":
            return torch.linspace(self.linear_start, self.linear_end, self.steps, dtype=torch.float64)
        return torch.linspace(self.linear_start**0.5, self.linear_end**0.5, self.steps, dtype=torch.float64) ** 2

    def alphas_cumprod(self) -> Tensor:
        """abar_t, the share of signal left at step t, (steps,)."""
        alphas = torch.cumprod(1.0 - self.betas(), dim=0)
        if not self.zero_terminal_snr:
            return alphas
        roots = alphas.sqrt()
        return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2

    def sigmas(self) -> Tensor:
        """Noise per unit of signal, sqrt((1 - abar) / abar), (steps,); infinite where no signal is left."""
        return sigma_of(self.alphas_cumprod())


def sigma_of(alpha_cumprod: Tensor) -> Tensor:
    """sqrt((1 - abar) / abar)."""
    return ((1.0 - alpha_cumprod) / alpha_cumprod).sqrt()


def alpha_cumprod_of(sigma: Tensor) -> Tensor:
    """abar = 1 / (1 + sigma^2) in float64."""
    return 1.0 / (1.0 + sigma.double() ** 2)


def add_noise(schedule: NoiseSchedule, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """q(x_t | x_0): sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; clean (B, ...), timesteps (B,)."""
    alpha = schedule.alphas_cumprod().to(clean.device)[timesteps]
    alpha = alpha.view(-1, *[1] * (clean.ndim - 1))
    return alpha.sqrt().to(clean.dtype) * clean + (1.0 - alpha).sqrt().to(clean.dtype) * noise


def velocity(schedule: NoiseSchedule, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (arXiv 2202.00512); clean (B, ...), timesteps (B,)."""
    alpha = schedule.alphas_cumprod().to(clean.device)[timesteps]
    alpha = alpha.view(-1, *[1] * (clean.ndim - 1))
    return alpha.sqrt().to(clean.dtype) * noise - (1.0 - alpha).sqrt().to(clean.dtype) * clean


def denoised_of(schedule: NoiseSchedule, x: Tensor, sigma: Tensor, prediction: Tensor) -> Tensor:
    """x_0 from what a network predicts at x = x_0 + sigma * noise; sigma is a scalar."""
    if schedule.prediction == "noise":
        return x - sigma * prediction
    alpha = alpha_cumprod_of(sigma).to(x.dtype)
    return alpha * x - (1 - alpha).sqrt() * prediction


def ddim_timesteps(steps: int, schedule_steps: int = 1000) -> Tensor:
    """Timesteps of LVDM's DDIM, descending: range(0, 1000, 1000 // steps), each plus one.

    When `steps` does not divide the length of the schedule, there are more than `steps` of them, as released.

    Raises:
        ValueError: no such grid, or one whose first timestep lies behind the end of the schedule.
    """
    if not 1 <= steps <= schedule_steps:
        raise ValueError(f"DDIM takes 1 to {schedule_steps} steps, found {steps}.")
    grid = torch.arange(0, schedule_steps, schedule_steps // steps) + 1
    if grid[-1] >= schedule_steps:
        raise ValueError(
            f"The released DDIM grid of {steps} steps starts at timestep {int(grid[-1])}, past the last one "
            f"({schedule_steps - 1}): choose another number, such as 20, 25, 50 or 100."
        )
    return grid.flip(0)


def ddim_sigmas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Noise levels (S + 1,) of LVDM's DDIM; the last step ends at the level of abar[0], not at zero."""
    levels = schedule.sigmas()
    return torch.cat([levels[ddim_timesteps(steps, schedule.steps)], levels[:1]])


def ancestral_sigmas(schedule: NoiseSchedule, steps: int | None = None) -> Tensor:
    """Noise levels (S + 1,) of ancestral sampling, ending at zero: through the whole schedule, or every k-th of it.

    With `steps`, timesteps are multiples of k = 1000 // steps, from 0 (DeepFloyd IF).

    Raises:
        ValueError: more steps than the schedule has, or none.
    """
    levels = schedule.sigmas()
    if steps is not None:
        if not 1 <= steps <= schedule.steps:
            raise ValueError(f"Ancestral sampling takes 1 to {schedule.steps} steps, found {steps}.")
        levels = levels[torch.arange(steps) * (schedule.steps // steps)]
    return torch.cat([levels.flip(0), torch.zeros(1, dtype=torch.float64)])


def ddim_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One DDIM step (arXiv 2010.02502 eq. 12) in variance-exploding scale, x = x_0 + sigma * eps.

    x, denoised, noise: same shape; sigma, sigma_next: scalars -> x at sigma_next.
    """
    alpha, alpha_next = alpha_cumprod_of(sigma), alpha_cumprod_of(sigma_next)
    spread = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).clamp(min=0).sqrt()
    direction = (1 - alpha_next - spread**2).clamp(min=0).sqrt() / alpha_next.sqrt()
    eps = (x - denoised) / sigma.to(x.dtype)
    return denoised + direction.to(x.dtype) * eps + (spread / alpha_next.sqrt()).to(x.dtype) * noise


def ancestral_step(
    x: Tensor,
    denoised: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    noise: Tensor,
    learned_variance: Tensor | None = None,
) -> Tensor:
    """One step of the posterior q(x_{t-1} | x_t, x_0) (arXiv 2006.11239 eq. 7) in variance-exploding scale.

    x, denoised, noise: same shape; sigma, sigma_next: scalars -> x at sigma_next; `denoised` itself at zero.
    `learned_variance`: like x, -1..1 between the posterior's and that of the forward step (arXiv 2102.09672 eq. 15).
    """
    alpha, alpha_next = alpha_cumprod_of(sigma), alpha_cumprod_of(sigma_next)
    beta = 1 - alpha / alpha_next
    on_clean = beta * alpha_next.sqrt() / (1 - alpha)
    on_noisy = (1 - alpha_next) * (1 - beta).sqrt() / (1 - alpha)
    variance = beta * (1 - alpha_next) / (1 - alpha)
    spread = variance.sqrt().to(x.dtype)
    if learned_variance is not None and variance > 0:
        share = (learned_variance + 1) / 2
        spread = (0.5 * (share * beta.log() + (1 - share) * variance.log())).exp().to(x.dtype)
    scaled = on_clean.to(x.dtype) * denoised + (on_noisy * alpha.sqrt()).to(x.dtype) * x
    return (scaled + spread * noise) / alpha_next.sqrt().to(x.dtype)
