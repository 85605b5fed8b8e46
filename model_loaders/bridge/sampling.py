"""Released samplers as SAMPLER objects, and their noise levels as SIGMAS."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...kernels.sampling.dpm_solver import DPMSolver, dpm_sigmas, thresholded
from ...kernels.sampling.schedules import (
    NoiseSchedule,
    alpha_cumprod_of,
    ancestral_sigmas,
    ancestral_step,
    ddim_sigmas,
    ddim_step,
)
from .compat import samplers

BETA_SCHEDULES = {"roots": "linear", "even": "sqrt_linear", "cosine": "cosine"}
"""ComfyUI's names of the spacings of a schedule; the first two say the opposite of what they are."""
StepFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class ReleaseSampler(samplers.KSAMPLER):
    """A sampler of a paper's release, on ComfyUI's scale x = x_0 + sigma * noise.

    The release starts from pure noise at its first level, even where that is not the model's highest; and where its
    last level is not zero, what it returns is the noisy-scale sample there. Between them a walk can be cut in two.
    """

    def __init__(
        self, make_step: Callable[[], StepFunction], start: float, end: float, offset_noise: float = 0.0
    ) -> None:
        """`make_step` is called for every walk: steps of higher order remember those before."""
        super().__init__(partial(_walk, make_step, end))
        self.start, self.offset_noise = start, offset_noise

    def sample(
        self,
        model_wrap: object,
        sigmas: Tensor,
        extra_args: dict[str, object],
        callback: object,
        noise: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """Noise (B, C, T, H, W) of videos is shifted by what a frame's pixels share, where the release did so."""
        if self.offset_noise and noise.shape[2] > 1 and noise.any() and self.max_denoise(model_wrap, sigmas):
            shared = _noise_like(noise[..., :1, :1], extra_args.get("seed"), stream=2)(sigmas[0], sigmas[0])
            noise = noise + self.offset_noise * shared
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)

    def max_denoise(self, model_wrap: object, sigmas: Tensor) -> bool:
        """Whether the walk starts from pure noise: at the release's first level, or the model's highest."""
        return math.isclose(float(sigmas[0]), self.start, rel_tol=1e-4) or super().max_denoise(model_wrap, sigmas)


def release_sampler(
    schedule: NoiseSchedule, kind: str, steps: int, eta: float, denoise: float, threshold: float = 0.0
) -> tuple[ReleaseSampler, Tensor]:
    """SAMPLER and SIGMAS of a release.

    Args:
        schedule: of the model.
        kind: "ddim", "dpm-solver++", or "ancestral" for all steps of the schedule.
        steps: of DDIM or DPM-Solver++.
        eta: 0 for deterministic DDIM, 1 for as much noise as ancestral sampling; below 0 for that of the release.
        denoise: share of the walk that is done, from its end; 1 for all.
        threshold: for DPM-Solver++ as in `thresholded`; 0 for none.

    Raises:
        ValueError: steps without a released grid, or a walk that starts where its kind of step cannot.
    """
    make_step: Callable[[], StepFunction]
    if kind == "ancestral":
        sigmas, make_step = ancestral_sigmas(schedule), lambda: _ancestral
    elif kind == "ddim":
        sigmas, make_step = ddim_sigmas(schedule, steps), lambda: partial(_ddim, schedule.eta if eta < 0 else eta)
    else:
        sigmas, make_step = dpm_sigmas(schedule, steps), lambda: _Solver(float(sigmas[-1]), steps, threshold)
    # As the releases count: the solver's whole steps of a share, the nearest number of the others.
    share = (len(sigmas) - 1) * denoise
    kept = max(1, int(share) if kind == "dpm-solver++" else round(share))
    chosen = sigmas[-(kept + 1) :]
    if kind != "ddim" and chosen[0].isinf():
        raise ValueError(
            f"This model's schedule ends at pure noise, which '{kind}' cannot start from: choose 'ddim', or a denoise "
            "below 1."
        )
    return ReleaseSampler(make_step, float(sigmas[0]), float(sigmas[-1]), schedule.offset_noise), chosen.float()


def ancestral_sampler(
    schedule: NoiseSchedule,
    steps: int,
    threshold: float,
    variance: Callable[[], Tensor | None],
    draw: Callable[[], Tensor],
) -> tuple[ReleaseSampler, Tensor]:
    """SAMPLER and SIGMAS of DeepFloyd IF: ancestral, thresholded, with the variance that the network predicts.

    Args:
        schedule: of the model.
        steps: as in `ancestral_sigmas`.
        threshold: as in `thresholded`.
        variance: what was predicted in the latest call of the network; None for the posterior's.
        draw: noise of a step; its generator goes on from where the start of the walk was drawn.
    """
    sigmas = ancestral_sigmas(schedule, steps)

    def step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor) -> Tensor:
        clean = thresholded(denoised, threshold)
        return ancestral_step(x, clean, sigma, sigma_next, noise.to(x), variance())

    sampler = ReleaseSampler(lambda: step, float(sigmas[0]), float(sigmas[-1]))
    sampler.extra_options = {"noise_sampler": lambda sigma, sigma_next: draw()}
    return sampler, sigmas.float()


class _Solver(DPMSolver):
    """Adds no noise."""

    def __call__(  # type: ignore[override]
        self, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor
    ) -> Tensor:
        return super().__call__(x, denoised, sigma, sigma_next)


def _ddim(eta: float, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor) -> Tensor:
    return ddim_step(x, denoised, sigma, sigma_next, eta, noise)


def _ancestral(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor) -> Tensor:
    return ancestral_step(x, denoised, sigma, sigma_next, noise)


def _walk(
    make_step: Callable[[], StepFunction],
    end: float,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, object] | None = None,
    callback: Callable[[dict[str, object]], None] | None = None,
    disable: bool | None = None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Sampling loop with k-diffusion's signature; noise is drawn at every step, used or not, as released."""
    extra_args = extra_args or {}
    draw = noise_sampler or _noise_like(x, extra_args.get("seed"))
    per_sample, step = x.new_ones(x.shape[0]), make_step()
    for index in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        denoised = model(x, sigma * per_sample, **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = step(x, denoised, sigma, sigma_next, draw(sigma, sigma_next))
    if not math.isclose(float(sigmas[-1]), end, rel_tol=1e-4):
        return x
    return x * alpha_cumprod_of(sigmas[-1]).sqrt().to(x.dtype)


def _noise_like(x: Tensor, seed: object, stream: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise from the CPU generator, so that a seed gives the same video on every device."""
    # Another seed than that of the starting noise; it wraps around like the seeds of ComfyUI's nodes.
    number = (int(seed) + stream) % 2**64 if seed is not None else torch.initial_seed()  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(number)

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Noise for one step."""
        return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)

    return draw
