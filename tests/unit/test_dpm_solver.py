"""The solver of Show-1's release: its timesteps, its thresholding, and its walk written in the release's scale."""

import pytest
import torch

from weft.kernels.sampling.dpm_solver import DPMSolver, dpm_sigmas, dpm_timesteps, thresholded
from weft.kernels.sampling.schedules import NoiseSchedule, ancestral_sigmas, ancestral_step, sigma_of

COSINE = NoiseSchedule(spacing="cosine")
ROOTS = NoiseSchedule(0.00085, 0.012)


@pytest.mark.parametrize(
    ("schedule", "steps", "first", "last"),
    [
        (COSINE, 50, [995, 975, 955, 935], [60, 40, 20]),
        (COSINE, 75, [995, 982, 968, 955, 942, 929], [53, 40, 27, 13]),
        (COSINE, 125, [995, 987, 979, 971], [32, 24, 16, 8]),
        (COSINE, 4, [995, 746], [498, 249]),
        (ROOTS, 50, [999, 979], [40, 20]),
    ],
)
def test_released_timesteps(schedule, steps, first, last):
    found = dpm_timesteps(schedule, steps).tolist()
    assert len(found) == steps and found[: len(first)] == first and found[-len(last) :] == last
    levels = dpm_sigmas(schedule, steps)
    assert len(levels) == steps + 1 and levels[-1] == schedule.sigmas()[0], "the walk ends at t = 0, not at no noise"


@pytest.mark.parametrize("steps", [0, 996])
def test_steps_without_a_grid_are_refused(steps):
    with pytest.raises(ValueError, match=f"takes 1 to 995 steps on this schedule, found {steps}"):
        dpm_timesteps(COSINE, steps)


def test_leading_timesteps_of_the_first_frame():
    levels = ancestral_sigmas(COSINE, 70)
    assert torch.equal(levels[[0, 1, -3, -2]], COSINE.sigmas()[[966, 952, 14, 0]]) and levels[-1] == 0 == levels[-1]
    assert len(levels) == 71 and len(ancestral_sigmas(COSINE)) == 1001


def test_every_frame_has_its_own_threshold():
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([0.1, 0.55, 0.7, 3.0], dtype=x.dtype).view(1, 1, 4, 1, 1)
    found = thresholded(x, 1.5)
    for video in range(2):
        for frame in range(4):
            values = x[video, :, frame]
            ranked = values.abs().flatten().sort().values
            place = 0.95 * (len(ranked) - 1)
            low = int(place)
            bound = ranked[low] + (ranked[low + 1] - ranked[low]) * (place - low)
            bound = bound.clamp(1.0, 1.5)
            # The quantile is taken in float32.
            torch.testing.assert_close(found[video, :, frame], values.clamp(-bound, bound) / bound, rtol=0, atol=1e-6)
    assert torch.equal(found[:, :, 0], x[:, :, 0]), "a frame inside -1..1 stays"
    assert torch.equal(thresholded(x, 1.0), x.clamp(-1, 1))


def released_walk(schedule, model, x, steps, threshold, begin=0):
    """The release's loop in its own scale, a_t x_0 + s_t noise, with lambda = ln(a / s)."""
    abar = schedule.alphas_cumprod()
    a, s = abar.sqrt(), (1 - abar).sqrt()
    log_snr = a.log() - s.log()
    times = [*dpm_timesteps(schedule, steps).tolist(), 0]
    before = None
    for index in range(begin, steps):
        t, p = times[index], times[index + 1]
        m = (x - s[t] * model(x, t)) / a[t]
        m = thresholded(m, threshold) if threshold else m
        h, direction = log_snr[p] - log_snr[t], m
        if before is not None and not (index == steps - 1 and steps < 15):
            h0 = log_snr[t] - log_snr[before[0]]
            direction = m + 0.5 * (h / h0) * (m - before[1])
        x = (s[p] / s[t]) * x - a[p] * (torch.exp(-h) - 1) * direction
        before = (t, m)
    return x


@pytest.mark.parametrize(("steps", "begin"), [(4, 0), (14, 0), (15, 0), (50, 0), (50, 10), (10, 2)])
@pytest.mark.parametrize(("schedule", "threshold"), [(COSINE, 1.5), (COSINE, 1.0), (ROOTS, 0.0)])
def test_walk_of_the_release(schedule, threshold, steps, begin):
    """Both in float64; some rounding of the levels is multiplied by the first of them, 160."""
    x = torch.randn(1, 3, 2, 6, 6, generator=torch.manual_seed(1), dtype=torch.float64)

    def model(x, t):
        return (x * 1.3 + 0.1 * t / 1000).tanh() * 1.2

    expected = released_walk(schedule, model, x, steps, threshold, begin)
    levels, times = dpm_sigmas(schedule, steps), dpm_timesteps(schedule, steps).tolist()
    solver = DPMSolver(float(levels[-1]), steps, threshold)
    abar = schedule.alphas_cumprod()
    found = x / abar[times[begin]].sqrt()
    for index in range(begin, steps):
        sigma, t = levels[index], times[index]
        denoised = found - sigma * model(found * abar[t].sqrt(), t)
        found = solver(found, denoised, sigma, levels[index + 1])
    torch.testing.assert_close(found * abar[0].sqrt(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.3, 1.0])
def test_learned_variance_lies_between_two(share):
    """At -1 the posterior's variance, at 1 that of the forward step; logarithms are mixed between."""
    abar = COSINE.alphas_cumprod()[[500, 486]]
    sigma, sigma_next = sigma_of(abar)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    spread = ancestral_step(zero, zero, sigma, sigma_next, one, share * one) * abar[1].sqrt()
    beta = 1 - abar[0] / abar[1]
    posterior = (1 - abar[1]) / (1 - abar[0]) * beta
    r = (share + 1) / 2
    torch.testing.assert_close(spread, (beta**r * posterior ** (1 - r)).sqrt() * one)
    plain = ancestral_step(zero, zero, sigma, sigma_next, one) * abar[1].sqrt()
    torch.testing.assert_close(plain, posterior.sqrt() * one)


def test_the_last_ancestral_step_adds_no_noise():
    sigma, nothing = COSINE.sigmas()[0], torch.zeros((), dtype=torch.float64)
    x, clean, noise = torch.randn(3, 5, dtype=torch.float64)
    found = ancestral_step(x, clean, sigma, nothing, noise, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found, clean)
