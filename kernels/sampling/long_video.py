"""Long videos: which latents are made from which, and LVDM's masked sampling of one window (arXiv 2211.13221, 3.3).

A video is a row of places, one for each latent. A plan says in what order windows of places are sampled, and which
latents of each are given: they were there at the start, or an earlier window made them.
Shapes: B videos, C channels, T latents of a window, L of the video, H, W latent size.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .schedules import NoiseSchedule, add_noise, alpha_cumprod_of, ddim_sigmas, ddim_step, ddim_timesteps

THRESHOLD = 250
"""Noise levels of given latents that LVDM was trained on are below this (s_max)."""


@dataclass(frozen=True)
class Window:
    """One sampling.

    Attributes:
        places: of its latents in the video; those behind its end are made and dropped.
        given: positions in the window of the latents that are known when its turn comes.
        kind: which of LVDM's two models samples it.
    """

    places: tuple[int, ...]
    given: tuple[int, ...]
    kind: Literal["prediction", "interpolation"] = "prediction"

    @property
    def made(self) -> tuple[int, ...]:
        """Positions in the window of the latents that it makes."""
        return tuple(position for position in range(len(self.places)) if position not in self.given)

    @property
    def made_places(self) -> tuple[int, ...]:
        """Places in the video of the latents that it makes."""
        return tuple(self.places[position] for position in self.made)

    def mask(self, like: Tensor) -> Tensor:
        """One where a latent is given: (B, 1, T, H, W) for a window (B, C, T, H, W)."""
        mask = torch.zeros_like(like[:, :1])
        mask[:, :, list(self.given)] = 1
        return mask


def autoregressive(
    length: int, window: int, overlap: int, known: int = 0, *, ending: int = 0, loop: bool = False, exact: bool = False
) -> list[Window]:
    """Windows one after the other, each given at least `overlap` latents of what is there.

    Args:
        length: of the video.
        window: latents that are sampled at once; fewer where the video is shorter.
        overlap: latents that a window shares with what is there.
        known: latents at the start of the video that are there from the beginning.
        ending: latents at its end that are; the last window is also given the first `overlap` of them.
        loop: the last window is also given the first `overlap` latents of the video, behind its end.
        exact: windows are given `overlap` latents and no more, as LVDM's models are trained, and the last one makes
            latents behind the end; else the last one begins earlier and is given more. Those given latents at both ends
            are never exact.

    Raises:
        ValueError: the overlap is not below the window, the video is shorter than what is known, it both ends in given
            latents and is a loop, or there is no room for a window that is given latents at both ends.
    """
    _check(length, window, overlap, known, ending)
    goal = length - ending
    closed = known < goal and (loop or ending > 0)
    if closed:
        _check_closing(length, window, overlap, ending, loop)
    exact = exact and not closed
    windows, end, stop = [], known, goal - (window - 2 * overlap) if closed else goal
    while end < stop:
        first = max(0, end - overlap if exact else min(end - overlap, stop - window))
        size = window if exact else min(window, length)
        if ending and first + size >= goal:  # would leave nothing to the window that is given both ends
            size = stop - first
        windows.append(Window(tuple(range(first, first + size)), tuple(range(end - first))))
        end = first + size
    if closed:
        first = goal + overlap - window if loop else max(0, min(goal + overlap, length) - window)
        places = tuple(place % length for place in range(first, first + min(window, length)))
        windows.append(Window(places, _positions(places, {*range(end), *range(goal, length)})))
    return windows


def _check_closing(length: int, window: int, overlap: int, ending: int, loop: bool) -> None:
    if loop and ending:
        raise ValueError("A video that leads to given latents at its end cannot also be a loop: choose one of both.")
    if window <= 2 * overlap:
        raise ValueError(
            f"The last of windows of {window} latents that share {overlap} is given {overlap} at both ends, which "
            f"leaves none to make: take an overlap of at most {max(1, (window - 1) // 2)} latents."
        )
    if loop and length <= window:
        raise ValueError(f"A loop of {length} latents in windows of {window} cannot be closed: take more latents.")


def hierarchical(length: int, window: int = 4, overlap: int = 1, between: int = 5, known: int = 0) -> list[Window]:
    """Distant latents first, one after the other, then those between each two neighbours (LVDM section 3.3).

    The released script fills only every third gap; here all are filled.

    Args:
        length: of the video.
        window: distant latents that the prediction model samples at once.
        overlap: distant latents that a window shares with the one before.
        between: latents that the interpolation model samples at once, of which it is given the first and the last.
        known: latents at the start of the video that are there from the beginning.

    Raises:
        ValueError: the overlap is not below the window, `between` leaves nothing to make, or the video is shorter than
            what is known.
    """
    if between < 3:
        raise ValueError(
            f"Interpolation of {between} latents makes none between the first and the last: take 3 or more."
        )
    _check(length, window, overlap, known)
    distance = between - 1
    if known == length:
        return []
    there, windows = set(range(known)), []
    distant = -(-(length - 1) // distance) + 1  # so that the last one is at the end of the video or behind it
    first = -(-known // distance)  # of the distant ones that is unknown
    while first < distant:
        begin = max(0, first - overlap)
        places = tuple(place * distance for place in range(begin, begin + window))
        windows.append(Window(places, _positions(places, there)))
        there.update(places)
        first = begin + window
    for begin in range(0, (distant - 1) * distance, distance):
        places = tuple(range(begin, begin + between))
        given = _positions(places, there)
        if any(place < length for place in set(places) - there):
            windows.append(Window(places, given, "interpolation"))
            there.update(places)
    return windows


def _positions(places: tuple[int, ...], there: Collection[int]) -> tuple[int, ...]:
    return tuple(position for position, place in enumerate(places) if place in there)


def _check(length: int, window: int, overlap: int, known: int, ending: int = 0) -> None:
    if not 1 <= overlap < window:
        raise ValueError(
            f"Found an overlap of {overlap} and windows of {window} latents: windows share at least one latent and "
            f"make at least one, take 1 to {window - 1}."
        )
    if known < 0 or ending < 0 or known + ending > length:
        raise ValueError(f"Found {known + ending} known latents in a video of {length}: make the video longer.")


def standing(latents: Tensor, window: Window) -> Tensor:
    """A guess of a window (B, C, T, H, W) from what is given: nothing moves, or one given latent turns into the next.

    Sampling that starts from it at less than the highest noise keeps the places of things, which pictures of pure noise
    and a given latent in as much noise do not say (FrameInit of arXiv 2402.04324 mixes such a guess into the noise).
    """
    guess, given = latents.clone(), window.given
    for position in window.made:
        before = [other for other in given if other < position]
        after = [other for other in given if other > position]
        first, last = (before[-1:] or after[:1])[0], (after[:1] or before[-1:])[0]
        share = (position - first) / (last - first) if last > first else 0.0
        guess[:, :, position] = torch.lerp(latents[:, :, first], latents[:, :, last], share)
    return guess


SampleWindow = Callable[[int, Window, Tensor], Tensor]
"""Number of a window, the window, its latents (B, C, T, H, W) with the given ones in their places -> the sample."""


def walk(plan: list[Window], video: Tensor, sample: SampleWindow) -> Iterator[Tensor]:
    """Sample the windows of a plan in their order; yields what each of them made, (B, C, made, H, W).

    Args:
        plan: of the windows.
        video: (B, C, `extent`, H, W), filled in: the known latents are in their places.
        sample: makes a window; what it returns in places of given latents is not used.
    """
    for number, window in enumerate(plan):
        latents = video[:, :, list(window.places)]
        made = sample(number, window, latents)[:, :, list(window.made)]
        video[:, :, list(window.made_places)] = made.to(video)
        yield made


def extent(plan: list[Window], length: int) -> int:
    """Places that a plan needs: those of the video, and those behind it that are dropped."""
    return max([length, *(place + 1 for window in plan for place in window.places)])


def perturbed(schedule: NoiseSchedule, clean: Tensor, level: int | None, noise: Tensor) -> Tensor:
    """Given latents with the noise of a level (LVDM eq. 8 and conditional latent perturbation); same shape.

    Args:
        schedule: of the model.
        clean: (B, C, T, H, W).
        level: 0 to 249, the same for all latents of all videos; None leaves them clean.
        noise: like `clean`; of one draw for all steps of a sampling.

    Raises:
        ValueError: a level at or above the threshold, which no model has seen.
    """
    if level is None:
        return clean
    if not 0 <= level < THRESHOLD:
        raise ValueError(f"The noise level of given latents is {level}, LVDM's models take 0 to {THRESHOLD - 1}.")
    return add_noise(schedule, clean, torch.full((len(clean),), level, device=clean.device), noise)


def guided(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """Unconditional guidance (LVDM eq. 9): (1 + w) eps_c - w eps_u."""
    return (1 + strength) * conditional - strength * unconditional


Denoise = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Latents (B, C, T, H, W), timesteps (B,), mask of the given ones (B, 1, T, H, W), their noise level (B,) or None ->
predicted noise (B, C, T, H, W)."""


@dataclass(frozen=True)
class Given:
    """What a sampling is conditioned on.

    Attributes:
        latents: (B, C, T, H, W), clean; only those that the mask names are used.
        mask: (B, 1, T, H, W), one where a latent is given.
        noise: (B, C, T, H, W), of the perturbation.
        level: of that noise, 0 to 249; None leaves the latents clean and tells the network no level.
        strength: w of the unconditional guidance; 0 for none.
    """

    latents: Tensor
    mask: Tensor
    noise: Tensor
    level: int | None = 100
    strength: float = 0.0


def masked_ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    noise: Tensor,
    given: Given,
    steps: int,
    eta: float,
    draw: Callable[[], Tensor],
) -> Tensor:
    """Sample a window around what is given (LVDM section 3.3); the given latents come back clean.

    The running latents of the given ones are replaced before both calls of the network: the unconditional one sees them
    too, under a mask of zeros and without a level, as released.

    Args:
        denoise: the network.
        schedule: of the model.
        noise: (B, C, T, H, W), the start.
        given: the condition.
        steps, eta: of DDIM.
        draw: noise of a step, like `noise`.
    """
    shown = perturbed(schedule, given.latents, given.level, given.noise)
    level = None if given.level is None else torch.full((len(noise),), given.level, device=noise.device)
    sigmas = ddim_sigmas(schedule, steps).to(noise.device)
    scales = alpha_cumprod_of(sigmas).sqrt().to(noise.dtype)  # of the papers' latents, which keep their variance
    x = noise
    for index, timestep in enumerate(ddim_timesteps(steps, schedule.steps)):
        x = x * (1 - given.mask) + shown * given.mask
        times = timestep.to(noise.device).expand(len(x))
        eps = denoise(x, times, given.mask, level)
        if given.strength:
            eps = guided(eps, denoise(x, times, torch.zeros_like(given.mask), None), given.strength)
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        scaled = x / scales[index]
        clean = scaled - sigma.to(x.dtype) * eps
        x = ddim_step(scaled, clean, sigma, sigma_next, eta, draw()) * scales[index + 1]
    return x * (1 - given.mask) + given.latents * given.mask
