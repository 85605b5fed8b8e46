"""Losses against their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.training.data.captions import DIRECTIONS, caption_terms, parse_caption, split_of, with_other_directions
from weft.training.discriminator import PatchDiscriminator
from weft.training.losses import (
    GradientLoss,
    PerceptualLoss,
    adaptive_weight,
    hinge_loss,
    kl_divergence,
    to_frames,
)
from weft.training.preference import OtherClips, OtherPictures, preference_loss
from weft.training.text import FrozenCaptions
from weft.training.text_to_video_task import TextToVideoTask, contrast_weights, p2_weights


def test_adaptive_weight_is_the_ratio_of_gradients():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, requires_grad=True)
    x, direction = torch.randn(2), torch.randn(3)
    y = weight @ x
    length = y.detach().norm()
    # d/dW sum(y^2) = 2 y x^T and d/dW (direction . y) = direction x^T.
    found = adaptive_weight(y.square().sum(), direction @ y, weight)
    expected = (2 * length * x.norm()) / (direction.norm() * x.norm() + 1e-4)
    assert not found.requires_grad
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(adaptive_weight(y.square().sum() * 1e9, (direction @ y) * 1e-9, weight)) == 1e4


def test_kl_divergence_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mean, logvar = torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 2, 3, 3)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(kl_divergence(mean, logvar), expected, rtol=1e-5, atol=1e-5)


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_gradient_loss_sees_edges_and_not_brightness():
    loss = GradientLoss(scales=3)
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    # A sum of differences of floats that are equal up to rounding.
    assert float(loss(x, x + 0.25).max()) < 1e-6
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1.0
    # One of 15, 7 and 3 horizontal differences is 1 at the three scales.
    assert float(loss(step, torch.zeros_like(step))) == pytest.approx((1 / 15 + 1 / 7 + 1 / 3) / 3, rel=1e-5)
    assert loss(x, torch.rand_like(x)).shape == (2, 1, 1, 1)


def test_perceptual_loss_does_not_download(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vgg16-397923af.pth: LPIPS needs torchvision's VGG16 weights there"):
        PerceptualLoss()


def test_frames_of_clips_keep_their_pixels():
    video = torch.arange(2 * 3 * 4 * 5 * 5).view(2, 3, 4, 5, 5)
    frames = to_frames(video)
    assert frames.shape == (8, 3, 5, 5)
    assert torch.equal(frames[5], video[1, :, 1])


def test_discriminator_has_the_released_layers():
    network = PatchDiscriminator((4, 8, 16, 16))
    strides = [layer.stride[0] for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    biases = [layer.bias is not None for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [2, 2, 2, 1, 1]
    assert biases == [True, False, False, False, True]
    torch.manual_seed(0)
    frames = torch.randn(2, 3, 64, 64)
    assert network(frames).shape == (2, 1, 6, 6)
    first = F.leaky_relu(F.conv2d(frames, network.layers[0].weight, network.layers[0].bias, stride=2, padding=1), 0.2)
    torch.testing.assert_close(network.layers[:2](frames), first)


def test_gradient_loss_of_small_frames_uses_fewer_scales():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 3, 8, 8)
    assert torch.equal(GradientLoss(scales=4)(x, y), GradientLoss(scales=3)(x, y))
    assert torch.isfinite(GradientLoss(scales=4)(x, y)).all()


def test_p2_weights_favour_noisy_times_and_keep_the_scale():
    schedule = NoiseSchedule(0.0015, 0.0155)
    weights = p2_weights(schedule, k=0.02, gamma=1.0)
    alpha = schedule.alphas_cumprod()
    ratio = (0.02 + alpha[100] / (1 - alpha[100])) / (0.02 + alpha[800] / (1 - alpha[800]))
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights[800] / weights[100]) == pytest.approx(float(ratio), rel=1e-5)
    assert torch.equal(p2_weights(schedule, k=1.0, gamma=0.0), torch.ones(1000))


def test_times_and_factors_share_the_weight():
    """In the mean over drawn times, a time's share is its P2 weight, whatever the shares of drawing and factor."""
    task = TextToVideoTask.__new__(TextToVideoTask)
    task.schedule = NoiseSchedule()
    task.weights = p2_weights(task.schedule, k=0.02, gamma=1.0)
    drawn, error = [], torch.linspace(0.5, 2.0, 1000)

    def loss(networks, latents, tokens, times, noise):
        drawn.append(times)
        return error[times]

    task.device, task.networks, task._loss, task._others = torch.device("cpu"), {}, loss, None
    task.recipe = SimpleNamespace(diffusion=SimpleNamespace(caption_dropout=0.0, contrast_power=0.0))
    task.facts, task.empty_tokens = {"shift": 0.0, "scale": 1.0}, torch.zeros(3, dtype=torch.long)
    torch.manual_seed(0)
    batch = (torch.zeros(200_000, 1, 1, 1, 1), torch.zeros(200_000, 1, 1, 1, 1), torch.zeros(200_000, 3).long())
    found = task.losses(batch, 0)
    # A mean over 200,000 draws.
    assert float(found.objectives["denoiser"]) == pytest.approx(float((task.weights * error).mean()), rel=0.01)
    assert drawn[0].float().mean() > 550


def test_faint_clips_count_more():
    """Objects of a quarter of the contrast have four times the weight, up to a limit; without a power all count 1."""
    clips = torch.full((3, 2, 4, 8, 8), 0.3)
    for clip, strength in zip(clips, (1.0, 0.5, 1e-4), strict=True):
        clip[:, :, 2:4, 2:4] += strength
    weights = contrast_weights(clips[:2], 1.0)
    assert weights.tolist() == pytest.approx([0.4, 1.6], rel=1e-5)
    assert contrast_weights(clips, 1.0)[2] <= 4.0
    assert torch.equal(contrast_weights(clips, 0.0), torch.ones(3))
    # An even clip has none, and no weight that is not a number.
    assert contrast_weights(torch.zeros(2, 2, 1, 8, 8), 1.0).isfinite().all()


def test_preference_is_level_in_the_size_of_the_errors_and_falls_as_the_other_caption_fits_worse():
    own, other = torch.tensor([0.2, 2.0], requires_grad=True), torch.tensor([0.3, 3.0])
    loss = preference_loss(own, other)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-6)
    loss.backward()
    # d/d own of softplus((own - other) / own held): sigmoid(-0.5) / own, averaged.
    assert own.grad.tolist() == pytest.approx([0.377541 / 0.2 / 2, 0.377541 / 2.0 / 2], rel=1e-5)
    assert preference_loss(own, own).item() == pytest.approx(math.log(2), rel=1e-6)
    assert preference_loss(torch.zeros(1), torch.ones(1)).isfinite()


def test_other_pictures_have_another_shape_or_place():
    text = FrozenCaptions(
        CaptionEncoder(CaptionEncoderConfig(caption_terms(places=True), width=8, heads=2, max_tokens=20)), saved=False
    )
    others = OtherPictures(text)
    one = "a red circle at the top over a dark background"
    two = "a red circle at the left and a blue square at the right over a dark background"
    none = "a red circle and a blue circle over a dark background"
    clip = "a red circle moves left to right over a dark background"
    wanted = {
        one: {one.replace("circle", other) for other in ("square", "triangle")}
        | {one.replace("top", other) for other in ("middle", "bottom")},
        two: {
            "a red square at the left and a blue circle at the right over a dark background",
            "a red circle at the right and a blue square at the left over a dark background",
        },
    }
    captions = [clip, two, none, one]
    torch.manual_seed(0)
    drawn = {one: set(), two: set()}
    for _ in range(40):
        rows, tokens = others.draw(text.tokens(captions), 2)
        assert rows.tolist() == [1, 3]
        for own, row in zip((two, one), tokens.tolist(), strict=True):
            drawn[own].add(tuple(row))
    for own, found in drawn.items():
        assert found == {tuple(row) for row in text.tokens(sorted(wanted[own])).tolist()}
    assert others.draw(text.tokens(captions), 1)[0].tolist() == [1]
    rows, tokens = others.draw(text.tokens([clip, none]), 2)
    assert rows.shape == (0,) and tokens.shape == (0, 20)


def test_other_directions_are_those_of_training_clips():
    one = "a red circle moves left to right over a dark background"
    two = "a red circle moves left to right and a blue square moves quickly top to bottom over a dark background"
    exchanged = "a red circle moves top to bottom and a blue square moves quickly left to right over a dark background"
    # Exchanged, the first one is held out; the second one says the same.
    none = [
        "a red circle moves right to left and a blue square moves top to bottom over a dark background",
        "a red circle moves right to left and a blue square moves slowly right to left over a dark background",
    ]
    assert with_other_directions(two) == [exchanged]
    others = with_other_directions(one)
    assert 1 <= len(others) <= 3 and one not in others
    assert all(split_of(parse_caption(other)) == "train" for other in others)
    assert {other.replace(way, "left to right") for other in others for way in DIRECTIONS if way in other} == {one}

    text = FrozenCaptions(
        CaptionEncoder(CaptionEncoderConfig(caption_terms(), width=8, heads=2, max_tokens=20)), saved=False
    )
    captions = OtherClips([none[0], two, one, none[1]], text.tokens, with_other_directions)
    torch.manual_seed(0)
    drawn = set()
    for _ in range(20):
        rows, tokens = captions.draw(text.tokens([none[0], two, "", one]), 2)
        assert rows.tolist() == [1, 3] and torch.equal(tokens[:1], text.tokens([exchanged]))
        drawn.add(tuple(tokens[1].tolist()))
    assert drawn == {tuple(row) for row in text.tokens(others).tolist()}
    assert captions.draw(text.tokens([two, one]), 1)[0].tolist() == [0]
    rows, tokens = captions.draw(text.tokens(none), 2)
    assert rows.shape == (0,) and tokens.shape == (0, 20)
