"""Noise schedules and released samplers: stored tables, and sampling loops written in the papers' scale."""

import pytest
import torch

from weft.kernels.sampling.schedules import (
    NoiseSchedule,
    add_noise,
    alpha_cumprod_of,
    ancestral_sigmas,
    ancestral_step,
    ddim_sigmas,
    ddim_step,
    ddim_timesteps,
    denoised_of,
    velocity,
)

SCHEDULES = {"video": NoiseSchedule(0.0015, 0.0155), "text2video": NoiseSchedule(0.00085, 0.012)}
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
# The stored tables are float32: 2^-24 relative, and some room.
ROUNDING = {"rtol": 1.2e-7, "atol": 0.0}


def pairs(levels):
    return list(zip(levels[:-1], levels[1:], strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_tables(parity, name):
    _, tables = parity("schedules")
    schedule = SCHEDULES[name]
    assert schedule.betas().dtype == schedule.alphas_cumprod().dtype == torch.float64
    torch.testing.assert_close(schedule.betas(), tables[f"{name}.betas"].double(), **ROUNDING)
    torch.testing.assert_close(schedule.alphas_cumprod(), tables[f"{name}.alphas_cumprod"].double(), **ROUNDING)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_tables(parity, name):
    """The ancestral step is linear: its factors on x_0, x_t and noise are the posterior's stored coefficients."""
    _, tables = parity("schedules")
    levels = ancestral_sigmas(SCHEDULES[name])

    def factors(clean, noisy, noise):
        steps = [
            ancestral_step(noisy / alpha_cumprod_of(now).sqrt(), clean, now, after, noise)
            * alpha_cumprod_of(after).sqrt()
            for now, after in pairs(levels)
        ]
        return torch.stack(steps).flip(0)

    variance = factors(ZERO, ZERO, ONE).square()
    found = {
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": factors(ONE, ZERO, ZERO),
        "posterior_mean_coef2": factors(ZERO, ONE, ZERO),
    }
    for table, values in found.items():
        torch.testing.assert_close(values, tables[f"{name}.{table}"].double(), msg=f"{name}.{table}", **ROUNDING)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "eta"), [(50, 1), (50, 0), (100, 1), (30, 1)])
def test_ddim_tables(parity, name, steps, eta):
    _, tables = parity("schedules")
    case = f"{name}.ddim{steps}.eta{eta}."
    timesteps = ddim_timesteps(steps).flip(0)
    assert timesteps.tolist() == tables[case + "timesteps"].tolist()
    levels = ddim_sigmas(SCHEDULES[name], steps)
    ascending = alpha_cumprod_of(levels).flip(0)
    torch.testing.assert_close(ascending[1:], tables[case + "alphas"].double(), **ROUNDING)
    torch.testing.assert_close(ascending[:-1], tables[case + "alphas_prev"].double(), **ROUNDING)
    sigmas = [
        ddim_step(ZERO, ZERO, now, after, float(eta), ONE) * alpha_cumprod_of(after).sqrt()
        for now, after in pairs(levels)
    ]
    # The stored ones come from float32 alphas, whose small differences lose digits.
    torch.testing.assert_close(torch.stack(sigmas).flip(0), tables[case + "sigmas"], rtol=1e-5, atol=0)


def test_last_ddim_step_ends_at_the_first_level():
    schedule = SCHEDULES["video"]
    levels = ddim_sigmas(schedule, 50)
    assert len(levels) == 51
    assert alpha_cumprod_of(levels[-1]) == pytest.approx(float(schedule.alphas_cumprod()[0]), rel=1e-12)
    # With eta = 1 it adds noise even there.
    last = ddim_step(ZERO, ZERO, levels[-2], levels[-1], 1.0, ONE) * alpha_cumprod_of(levels[-1]).sqrt()
    assert float(last) == pytest.approx(0.0274, abs=5e-5)


def test_grids_that_the_released_code_cannot_run_are_refused():
    failing = []
    for steps in range(1, 1001):
        try:
            grid = ddim_timesteps(steps)
        except ValueError as error:
            failing.append(steps)
            assert f"grid of {steps} steps" in str(error) and "choose another number" in str(error)
        else:
            assert 1 <= int(grid.min()) and int(grid.max()) <= 999
    assert failing == [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_numbers_of_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=f"1 to 1000 steps, found {steps}"):
        ddim_timesteps(steps)


def test_a_number_that_does_not_divide_the_schedule_gives_more_steps():
    assert len(ddim_timesteps(30)) == 31


# Data that are normal in every coordinate, so that the best denoiser is known: mean and standard deviation.
MEAN, SPREAD = 0.7, 0.4


def denoise(x, sigma):
    """E[x_0 | x_0 + sigma n = x]."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def predict_noise(x, alpha):
    """The same in the papers' scale: E[n | sqrt(alpha) x_0 + sqrt(1 - alpha) n = x]."""
    return (1 - alpha).sqrt() * (x - alpha.sqrt() * MEAN) / (alpha * SPREAD**2 + 1 - alpha)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 30, 50])
def test_ddim_loop(steps, eta):
    schedule = SCHEDULES["video"]
    generator = torch.Generator().manual_seed(steps)
    abar = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64) ** 2, 0)
    times = [t + 1 for t in range(0, 1000, 1000 // steps)]
    noise = torch.randn(len(times), 64, generator=generator, dtype=torch.float64)
    start = torch.randn(64, generator=generator, dtype=torch.float64)

    expected = start
    for index in reversed(range(len(times))):
        alpha, previous = abar[times[index]], abar[times[index - 1]] if index else abar[0]
        spread = eta * ((1 - previous) / (1 - alpha) * (1 - alpha / previous)).sqrt()
        eps = predict_noise(expected, alpha)
        clean = (expected - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        direction = (1 - previous - spread**2).sqrt() * eps
        expected = previous.sqrt() * clean + direction + spread * noise[index]

    levels = ddim_sigmas(schedule, steps)
    x = start / alpha_cumprod_of(levels[0]).sqrt()
    for (now, after), drawn in zip(pairs(levels), noise.flip(0), strict=True):
        x = ddim_step(x, denoise(x, now), now, after, eta, drawn)
    assert (x * alpha_cumprod_of(levels[-1]).sqrt() - expected).abs().max() < 1e-10


def test_ancestral_loop():
    schedule = SCHEDULES["text2video"]
    generator = torch.Generator().manual_seed(1)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, 0)
    noise = torch.randn(1000, 64, generator=generator, dtype=torch.float64)
    start = torch.randn(64, generator=generator, dtype=torch.float64)

    expected = start
    for i in reversed(range(1000)):
        previous = abar[i - 1] if i else ONE
        clean = expected / abar[i].sqrt() - (1 / abar[i] - 1).sqrt() * predict_noise(expected, abar[i])
        mean = beta[i] * previous.sqrt() / (1 - abar[i]) * clean
        mean = mean + (1 - previous) * (1 - beta[i]).sqrt() / (1 - abar[i]) * expected
        variance = beta[i] * (1 - previous) / (1 - abar[i])
        expected = mean + variance.sqrt() * noise[i] if i else mean

    levels = ancestral_sigmas(schedule)
    assert len(levels) == 1001 and levels[-1] == 0
    x = start / alpha_cumprod_of(levels[0]).sqrt()
    for (now, after), drawn in zip(pairs(levels), noise.flip(0), strict=True):
        x = ancestral_step(x, denoise(x, now), now, after, drawn)
    assert (x - expected).abs().max() < 1e-10
    # And the samples are of the data: mean and spread of 64 draws.
    assert abs(float(x.mean()) - MEAN) < 3 * SPREAD / 8


def test_add_noise():
    schedule = SCHEDULES["video"]
    abar = schedule.alphas_cumprod()
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    found = add_noise(schedule, clean, torch.tensor([0, 999]), noise)
    assert found.dtype == clean.dtype
    for index, t in enumerate((0, 999)):
        expected = abar[t].sqrt() * clean[index].double() + (1 - abar[t]).sqrt() * noise[index].double()
        torch.testing.assert_close(found[index].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_what_is_predicted_gives_the_clip_back(prediction):
    schedule = NoiseSchedule(0.00085, 0.012, zero_terminal_snr=True, prediction=prediction)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    for time in (0, 500, 990):
        times = torch.full((3,), time)
        noisy = add_noise(schedule, clean, times, noise)
        target = noise if prediction == "noise" else velocity(schedule, clean, times, noise)
        alpha = schedule.alphas_cumprod()[time]
        found = denoised_of(schedule, noisy / alpha.sqrt(), schedule.sigmas()[time], target)
        torch.testing.assert_close(found, clean, rtol=0, atol=1e-9)
