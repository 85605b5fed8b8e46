"""Plans of long videos, and LVDM's masked sampling against a loop written in the paper's scale."""

import itertools
import math

import pytest
import torch

from weft.kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig
from weft.kernels.sampling import long_video
from weft.kernels.sampling.long_video import Given, Window, autoregressive, hierarchical
from weft.kernels.sampling.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule(0.0015, 0.0155)


def replayed(plan, known=0, ending=()):
    """Places that are there in the end, after checking that every window is told exactly what is there."""
    there = {*range(known), *ending}
    for window in plan:
        assert window.given == tuple(at for at, place in enumerate(window.places) if place in there)
        assert window.made, "a window that makes nothing"
        there |= set(window.places)
    return there


@pytest.mark.parametrize("length", range(1, 31))
@pytest.mark.parametrize(("window", "overlap"), [(4, 1), (4, 3), (5, 2), (16, 4)])
@pytest.mark.parametrize("exact", [False, True])
def test_windows_one_after_the_other_make_every_latent_once(length, window, overlap, exact):
    for known in range(length + 1):
        plan = autoregressive(length, window, overlap, known, exact=exact)
        assert replayed(plan, known) >= set(range(length))
        makers = [place for entry in plan for place in entry.made_places]
        assert len(makers) == len(set(makers)) and not set(makers) & set(range(known))
        for entry in plan:
            assert len(entry.places) == (window if exact else min(window, length))
            assert list(entry.places) == list(range(entry.places[0], entry.places[0] + len(entry.places)))
            if entry.places[0]:
                assert len(entry.given) == overlap if exact else len(entry.given) >= overlap
        if not exact:
            assert max(makers, default=0) < length
        fewest = math.ceil((length - max(known, overlap)) / (window - overlap))
        assert len(plan) == max(known < length, fewest)


def test_the_last_window_begins_earlier_or_makes_more():
    places = [window.places for window in autoregressive(9, 4, 1, 4)]
    assert places == [(3, 4, 5, 6), (5, 6, 7, 8)]
    exact = autoregressive(9, 4, 1, 4, exact=True)
    assert [window.places for window in exact] == [(3, 4, 5, 6), (6, 7, 8, 9)]
    assert [window.given for window in exact] == [(0,), (0,)] and long_video.extent(exact, 9) == 10


@pytest.mark.parametrize("length", range(5, 31))
@pytest.mark.parametrize(("window", "overlap"), [(4, 1), (5, 2), (16, 4)])
def test_a_loop_is_closed_by_a_window_given_both_ends(length, window, overlap):
    for known in (0, 1, 4, length - 1):
        if length <= window:
            with pytest.raises(ValueError, match=f"A loop of {length} latents in windows of {window} cannot"):
                autoregressive(length, window, overlap, known, loop=True)
            continue
        plan = autoregressive(length, window, overlap, known, loop=True)
        assert replayed(plan, known) == set(range(length))
        last = plan[-1]
        assert last.places[-overlap:] == tuple(range(overlap)) and len(last.places) == window
        ends = tuple(range(window - overlap, window))
        assert set(last.given) >= {*range(overlap), *ends} and last.made_places[-1] == length - 1


@pytest.mark.parametrize("length", range(2, 31))
@pytest.mark.parametrize(("window", "overlap"), [(3, 1), (4, 1), (5, 2), (16, 4)])
def test_two_clips_are_joined_by_a_window_given_both_ends(length, window, overlap):
    for known, ending in itertools.product(range(length), range(1, length)):
        if known + ending > length:
            continue
        plan = autoregressive(length, window, overlap, known, ending=ending)
        goal = length - ending
        assert replayed(plan, known, range(goal, length)) == set(range(length))
        made = [place for entry in plan for place in entry.made_places]
        assert sorted(made) == list(range(known, goal)), "every latent between them is made once"
        assert all(len(entry.places) <= min(window, length) for entry in plan)
        if made:
            last = plan[-1]
            seen = {last.places[position] for position in last.given}
            assert seen >= set(range(goal, min(goal + overlap, length)))
            assert last.made_places[-1] == goal - 1
            begun = min(overlap, last.made_places[0])
            assert seen >= set(range(last.made_places[0] - begun, last.made_places[0]))


def test_what_cannot_be_closed():
    for how in ({"loop": True}, {"ending": 3}):
        with pytest.raises(ValueError, match="given 2 at both ends, which leaves none to make: .* at most 1 latents"):
            autoregressive(16, 4, 2, **how)
    with pytest.raises(ValueError, match="leads to given latents at its end cannot also be a loop"):
        autoregressive(16, 4, 1, loop=True, ending=2)
    with pytest.raises(ValueError, match="Found 17 known latents in a video of 16: make the video longer"):
        autoregressive(16, 4, 1, 8, ending=9)


@pytest.mark.parametrize(
    ("frames", "predictions", "gaps"), [(1024, 22, 64), (64, 2, 4), (52, 1, 3), (16, 1, 1), (4, 1, 0)]
)
def test_hierarchy_for_a_number_of_frames(frames, predictions, gaps):
    """1024 frames are 256 latents: 65 distant ones, which 1 + 21 windows make as 67, and 64 gaps, all filled."""
    plan = hierarchical(frames // 4)
    kinds = [window.kind for window in plan]
    assert kinds == ["prediction"] * predictions + ["interpolation"] * gaps
    assert replayed(plan) >= set(range(frames // 4))
    distant = [window.places for window in plan[:predictions]]
    assert distant[0] == (0, 4, 8, 12)
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(distant))
    for gap, window in enumerate(plan[predictions:]):
        assert window.places == tuple(range(4 * gap, 4 * gap + 5)) and window.given == (0, 4)


@pytest.mark.parametrize("length", range(1, 41))
def test_hierarchy_of_any_length_and_start(length):
    for known in range(length + 1):
        plan = hierarchical(length, known=known)
        assert replayed(plan, known) >= set(range(length))
        assert all(window.given for window in plan[1:])
        assert sum(window.kind == "interpolation" for window in plan) <= math.ceil((length - 1) / 4)
    assert not hierarchical(length, known=length)


@pytest.mark.parametrize("plan", [autoregressive, hierarchical])
def test_what_cannot_be_planned(plan):
    for overlap in (0, 4, 7):
        with pytest.raises(ValueError, match=f"overlap of {overlap} and windows of 4 latents.*take 1 to 3"):
            plan(16, 4, overlap)
    with pytest.raises(ValueError, match="Found 9 known latents in a video of 8: make the video longer"):
        plan(8, 4, 1, known=9)
    with pytest.raises(ValueError, match="Interpolation of 2 latents makes none"):
        hierarchical(8, between=2)


def test_walk_gives_every_window_what_is_there():
    """A sampler that counts on from the mean of what it is given; what it returns for given places is not used."""
    plan = hierarchical(13, known=2)
    video = torch.full((2, 3, long_video.extent(plan, 13), 1, 1), torch.nan)
    video[:, :, :2] = torch.tensor([10.0, 20.0]).view(1, 1, 2, 1, 1)
    made = {}

    def sample(number, window, latents):
        assert plan[number] is window and latents.shape == (2, 3, len(window.places), 1, 1)
        known = latents[:, :, list(window.given)]
        assert known.isfinite().all() and latents[:, :, list(window.made)].isnan().all()
        value = float(known.mean()) + number + 1
        made.update(dict.fromkeys(window.made_places, value))
        return torch.full_like(latents, value)

    chunks = list(long_video.walk(plan, video, sample))
    assert [chunk.shape[2] for chunk in chunks] == [len(window.made) for window in plan]
    assert video.isfinite().all() and video[0, 0, :2, 0, 0].tolist() == [10, 20]
    for place, value in made.items():
        assert (video[:, :, place] == value).all()


def test_a_still_guess_holds_or_turns_what_is_given():
    latents = torch.tensor([5.0, 1.0, 0.0, 0.0, 4.0, 0.0]).view(1, 1, 6, 1, 1).expand(2, 3, 6, 2, 2)
    found = long_video.standing(latents, Window(tuple(range(6)), (1, 4)))
    assert found.shape == latents.shape and torch.equal(found, found[:1, :1, :, :1, :1].expand_as(found))
    assert found[0, 0, :, 0, 0].tolist() == [1, 1, 2, 3, 4, 4]


@pytest.fixture(scope="module")
def network():
    """A small prediction network whose output is quiet, so that rounding does not grow; in float64 and float32."""
    torch.manual_seed(0)
    config = LatentVideoUNetConfig(5, 4, 32, (1, 2), 1, (2,), 2, noise_levels=251)
    network = LatentVideoUNet(config).double().eval()
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return network


def draws(seed, shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def papers_loop(network, noise, clean, count, fresh, level, w, steps, eta, draw):
    """DDIM on z_t = sqrt(abar) z_0 + sqrt(1 - abar) n with replaced latents, all in float64."""
    beta = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, 0)
    times = [1 + index * (1000 // steps) for index in range(steps)]
    mask = torch.zeros(len(noise), 1, *noise.shape[2:], dtype=torch.float64)
    mask[:, :, :count] = 1
    shown = clean if level is None else abar[level] ** 0.5 * clean + (1 - abar[level]) ** 0.5 * fresh
    told = None if level is None else torch.full((len(noise),), level)
    z = noise
    for index in reversed(range(steps)):
        now, before = abar[times[index]], abar[times[index - 1]] if index else abar[0]
        z = torch.cat([shown[:, :, :count], z[:, :, count:]], dim=2)
        t = torch.full((len(noise),), times[index])
        eps = network(torch.cat([z, mask], 1), t, noise_level=told)
        if w:
            free = network(torch.cat([z, torch.zeros_like(mask)], 1), t)
            eps = eps + w * (eps - free)
        sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
        clean_now = (z - (1 - now) ** 0.5 * eps) / now**0.5
        z = before**0.5 * clean_now + (1 - before - sigma**2) ** 0.5 * eps + sigma * draw()
    return z


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(("level", "w", "eta"), [(100, 0.1, 1.0), (None, 0.0, 1.0), (249, 1.0, 0.0), (0, 0.5, 0.5)])
def test_masked_sampling_is_the_papers_loop(network, dtype, tolerance, level, w, eta):
    """Tolerances in units of the latents' spread: rounding of float32 over ten steps of a network stays below 1e-5."""
    shape = (2, 4, 4, 4, 4)
    noise, clean, fresh = (draws(seed, shape, torch.float64)() for seed in range(3))
    with torch.no_grad():
        expected = papers_loop(network, noise, clean, 1, fresh, level, w, 10, eta, draws(3, shape, torch.float64))
        asked = network.to(dtype)
        calls = []

        def denoise(x, times, mask, told):
            calls.append(None if told is None else told.tolist())
            return asked(torch.cat([x, mask], 1), times, noise_level=told)

        mask = Window((0, 1, 2, 3), (0,)).mask(noise)
        given = Given(*(tensor.to(dtype) for tensor in (clean, mask, fresh)), level, w)
        draw = draws(3, shape, dtype)
        found = long_video.masked_ddim(denoise, SCHEDULE, noise.to(dtype), given, 10, eta, draw)
        network.double()
    told = None if level is None else [level, level]
    assert calls == ([told, None] if w else [told]) * 10
    assert found.dtype == dtype and torch.equal(found[:, :, :1], clean[:, :, :1].to(dtype))
    error = (found[:, :, 1:].double() - expected[:, :, 1:]).abs().max() / expected[:, :, 1:].std()
    assert error < tolerance


def test_levels_at_the_threshold_are_refused():
    latents = torch.zeros(1, 4, 2, 2, 2)
    for level in (-1, 250):
        with pytest.raises(ValueError, match=f"level of given latents is {level}, LVDM's models take 0 to 249"):
            long_video.perturbed(SCHEDULE, latents, level, latents)
