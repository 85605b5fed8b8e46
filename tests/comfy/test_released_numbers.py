"""The released samplers' numbers through ComfyUI's sampling path: model, SIGMAS and noise in, latents out.

The references below are written out of the formulas on the variance-preserving scale, in float64, and call the network
of the kernels directly; ComfyUI works on the scale x = x_0 + sigma * noise.
"""

import pytest
import torch

from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.checkpoint import read

SCALE, SHIFT, SEED = 0.5, 0.1, 11
TOLERANCE = 1e-3  # asked for in float32; what is found is about 1e-5


class Reference:
    """The network of a toy file in float64 with classifier-free guidance in its default form."""

    def __init__(self, path, positive=None, negative=None, guidance=1.0):
        checkpoint = read(path)
        self.network = checkpoint.component("diffusion_model").build(dtype=torch.float64)
        self.alphas = torch.cumprod(1 - betas(checkpoint.schedule), 0)
        self.texts, self.guidance = (positive, negative), guidance

    def noise_in(self, x, timestep):
        """The predicted noise at an integer timestep."""
        time = torch.full((x.shape[0],), float(timestep), dtype=torch.float64)
        positive, negative = (None if text is None else text[0][0].double() for text in self.texts)
        predicted = self.network(x, time, positive)
        if self.guidance == 1.0:
            return predicted
        without = self.network(x, time, negative)
        return without + self.guidance * (predicted - without)

    def ddim(self, x, steps, eta, draw):
        """DDIM on timesteps 1, 1 + 1000 / S, ...; the last step ends at abar[0], not at one."""
        grid = [step + 1 for step in range(0, 1000, 1000 // steps)]
        previous = [0, *grid[:-1]]
        for now, then in zip(reversed(grid), reversed(previous), strict=True):
            a, a_prev = self.alphas[now], self.alphas[then]
            sigma = eta * torch.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
            eps = self.noise_in(x, now)
            clean = (x - torch.sqrt(1 - a) * eps) / torch.sqrt(a)
            x = torch.sqrt(a_prev) * clean + torch.sqrt(1 - a_prev - sigma**2) * eps + sigma * draw()
        return x

    def ancestral(self, x, first, draw):
        """Every timestep from `first` down to 0, with the posterior's mean and variance."""
        for now in range(first, -1, -1):
            a, a_prev = self.alphas[now], self.alphas[now - 1] if now else torch.ones(())
            beta = 1 - a / a_prev
            clean = x / torch.sqrt(a) - torch.sqrt(1 / a - 1) * self.noise_in(x, now)
            mean = beta * torch.sqrt(a_prev) / (1 - a) * clean + (1 - a_prev) * torch.sqrt(1 - beta) / (1 - a) * x
            noise = draw()
            x = mean + torch.sqrt(beta * (1 - a_prev) / (1 - a)) * noise if now else mean
        return x


def betas(schedule: NoiseSchedule):
    """The scaled linear schedule."""
    start, end = schedule.linear_start**0.5, schedule.linear_end**0.5
    return torch.linspace(start, end, schedule.steps, dtype=torch.float64) ** 2


def noise_stream(shape):
    """The noise of the steps: what the seed after the one of the start draws on the CPU."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return lambda: torch.randn(shape, generator=generator).double()


def start_noise(shape):
    """The noise of the start, as ComfyUI draws it."""
    return torch.randn(shape, generator=torch.manual_seed(SEED))


def sampled(comfy, model, latent, guider, **release):
    """LATENT's samples by Release Sampler and SamplerCustomAdvanced."""
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=model, **release)
    noise = comfy.run("RandomNoise", noise_seed=SEED)[0]
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return comfy.run("SamplerCustomAdvanced", **inputs)[0]["samples"]


def guided(comfy, toy, cfg):
    return comfy.run("CFGGuider", model=toy.model, positive=toy.positive, negative=toy.negative, cfg=cfg)[0]


def assert_same(found, diffusion_space):
    """LATENT holds autoencoder latents: a = z / scale - shift."""
    expected = diffusion_space / SCALE - SHIFT
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert expected.std() > 0.5, "a collapsed reference would prove nothing"
    assert (found - expected).abs().max() < TOLERANCE


def empty(comfy, model, frames=16):
    return comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=frames)[0]


def check_ddim(comfy, toy, toy_models, steps, eta, cfg):
    latent = empty(comfy, toy.model)
    found = sampled(comfy, toy.model, latent, guided(comfy, toy, cfg), kind="ddim", steps=steps, eta=eta)
    shape = latent["samples"].shape
    reference = Reference(toy_models / "toy.safetensors", toy.positive, toy.negative, cfg)
    assert_same(found, reference.ddim(start_noise(shape).double(), steps, eta, noise_stream(shape)))


def test_ddim_50_steps_without_noise(comfy, toy, toy_models):
    check_ddim(comfy, toy, toy_models, 50, 0.0, 3.0)


def test_ddim_10_steps_with_noise(comfy, toy, toy_models):
    check_ddim(comfy, toy, toy_models, 10, 1.0, 3.0)


def test_ddim_with_some_noise_and_no_guidance(comfy, toy, toy_models):
    check_ddim(comfy, toy, toy_models, 20, 0.5, 1.0)


def test_a_number_of_steps_that_does_not_divide_1000_gives_one_more(comfy, toy, toy_models):
    sigmas = comfy.run("WeftReleaseSampler", model=toy.model, kind="ddim", steps=30)[1]
    assert len(sigmas) == 32
    check_ddim(comfy, toy, toy_models, 30, 0.0, 3.0)


def test_ancestral_through_a_whole_schedule_unconditionally(comfy, toy_models):
    model, clip, _ = comfy.run("WeftLoadCheckpoint", checkpoint="toy_uncond.safetensors")
    assert clip.cond_stage_model.caption.transformer.config.vocabulary == ()
    latent = empty(comfy, model)
    conditioning = [[torch.zeros(1, 1, 8), {}]]  # a model without text ignores it
    guider = comfy.run("BasicGuider", model=model, conditioning=conditioning)[0]
    found = sampled(comfy, model, latent, guider, kind="ancestral")
    shape = latent["samples"].shape
    reference = Reference(toy_models / "toy_uncond.safetensors")
    assert_same(found, reference.ancestral(start_noise(shape).double(), 19, noise_stream(shape)))


def test_ancestral_over_the_end_of_the_schedule_from_a_given_video(comfy, toy, toy_models):
    latent = {"samples": torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(2))}
    found = sampled(comfy, toy.model, latent, guided(comfy, toy, 3.0), kind="ancestral", denoise=0.02)
    shape = latent["samples"].shape
    reference = Reference(toy_models / "toy.safetensors", toy.positive, toy.negative, 3.0)
    level = reference.alphas[19]
    given = SCALE * (latent["samples"].double() + SHIFT)
    x = torch.sqrt(level) * given + torch.sqrt(1 - level) * start_noise(shape)
    assert_same(found, reference.ancestral(x, 19, noise_stream(shape)))


def test_ddim_from_a_given_video(comfy, toy, toy_models):
    """Half of 20 steps: starts at the noise level of timestep 451, the tenth from below."""
    latent = {"samples": torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(2))}
    sigmas = comfy.run("WeftReleaseSampler", model=toy.model, kind="ddim", steps=20, denoise=0.5)[1]
    alphas = Reference(toy_models / "toy.safetensors").alphas
    assert len(sigmas) == 11
    expected = torch.sqrt((1 - alphas[451]) / alphas[451])
    assert torch.isclose(sigmas[0].double(), expected, rtol=1e-6)
    found = sampled(comfy, toy.model, latent, guided(comfy, toy, 3.0), kind="ddim", steps=20, eta=0.0, denoise=0.5)
    assert found.isfinite().all()


def test_steps_without_a_released_grid_are_refused(comfy, toy):
    """27 steps would begin at timestep 1000."""
    with pytest.raises(ValueError, match="27 steps starts at timestep 1000, past the last one .*choose another"):
        comfy.run("WeftReleaseSampler", model=toy.model, kind="ddim", steps=27)


def test_models_of_others_are_refused(comfy):
    with pytest.raises(ValueError, match="expected a model loaded by one of this pack's loaders"):
        comfy.run("WeftReleaseSampler", model=object())
