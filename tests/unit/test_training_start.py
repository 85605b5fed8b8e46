"""How training begins: an autoencoder that resamples, windows around the objects, denoisers that see text and time."""

import pytest
import torch
import torch.nn.functional as F

from weft.kernels.analysis.content import appearance_matrix
from weft.kernels.layers.temporal import TemporalAttention
from weft.kernels.networks.higen import HiGenUNet, HiGenUNetConfig
from weft.kernels.networks.lvdm import TextToVideoUNet, TextToVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.training.data.clips import stack_videos, to_pixels
from weft.training.data.crops import crop_to_foreground
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig
from weft.training.resampling import initialize_as_resampling
from weft.training.start_settings import DenoiserStart
from weft.training.text_to_video_task import initialize_denoiser


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("resampling", [True, False])
def test_resampling_carries_the_picture_through_both_halves(resampling):
    data = MovingShapes(MovingShapesConfig(size=32, frames=8))
    video = to_pixels(stack_videos(data, [0, 1, 2, 3])[0])
    small = F.avg_pool3d(video, 4)
    torch.manual_seed(0)
    network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(4, 4, 4), norm_groups=4))
    if resampling:
        initialize_as_resampling(network)
    with torch.no_grad():
        features = network.encoder.conv_in(video)
        for stage in network.encoder.stages:
            features = stage.residual(stage.down(features))
        enlarged = network.decoder(F.pad(small, (0, 0, 0, 0, 0, 0, 0, 1)))
        _, logvar = network.moments(video)
    down, up = correlation(features[:, :3], small), correlation(enlarged, video)
    assert (down > 0.9 and up > 0.9) if resampling else (abs(down) < 0.6 and abs(up) < 0.6)
    assert (logvar.mean() < -5) == resampling


def test_windows_lie_around_the_object():
    torch.manual_seed(0)
    video = torch.full((6, 3, 4, 32, 32), -0.5)
    video += torch.arange(4).view(1, 1, 4, 1, 1) * 0.01
    rows, columns = [2, 5, 16, 29, 16, 9], [3, 27, 16, 30, 1, 20]
    for clip, row, column in zip(video, rows, columns, strict=True):
        clip[:, :, row, column] = 50.0
    windows = crop_to_foreground(video, 8)
    assert windows.shape == (6, 3, 4, 8, 8)
    assert (windows.amax(dim=(1, 3, 4)) == 50.0).all()
    # All frames of a clip are cut at the same place.
    assert all(torch.equal(window[:, 0] > 1, window[:, 3] > 1) for window in windows)


def start_of(**settings) -> TextToVideoUNet:
    config = TextToVideoUNetConfig(
        model_channels=8, channel_mult=(1,), num_res_blocks=1, attention_factors=(1,), num_heads=2, context_width=8,
        temporal_length=4, norm_groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    network = TextToVideoUNet(config)
    initialize_denoiser(network, DenoiserStart(**settings))
    return network


def test_the_released_start_sees_no_time_and_a_strong_one_does():
    torch.manual_seed(1)
    tokens = torch.randn(1, 4, 6, 8)
    released, strong = start_of(), start_of(temporal="drawn", position_gain=8.0)
    for name, module in released.named_modules():
        if isinstance(module, TemporalAttention):
            assert not module(tokens).any()
            # The same picture in every frame: what differs between frames is the place in time.
            still = strong.get_submodule(name)(tokens[:, :1].expand(-1, 4, -1, -1))
            assert (still[:, 0] - still[:, 3]).std() > 0.3
    assert not released(torch.randn(1, 4, 4, 4, 4), torch.tensor([5]), torch.randn(1, 3, 8)).any()


def test_gains_of_a_start_multiply_what_is_drawn():
    plain, strong = start_of(), start_of(text_gain=30.0, position_gain=8.0, feed_forward_gain=2.5)
    for name, weight in plain.named_parameters():
        gain = 30.0 if name.endswith("text.out.weight") else 1.0
        gain = 8.0 if "positions" in name else gain
        gain = 2.5 if name.endswith("feed_forward.inner.weight") else gain
        torch.testing.assert_close(strong.get_parameter(name), weight * gain, msg=name)


def test_a_strong_start_of_higen_reads_words_and_tells_frames_apart():
    config = HiGenUNetConfig(
        model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,), head_width=4, stem_heads=2,
        context_width=8, norm_groups=4, text_width=8, resampled_tokens=2, resampler_depth=1, resampler_heads=2,
    )  # fmt: skip
    networks = []
    for settings in ({}, {"temporal": "drawn", "text_gain": 8.0, "text_focus": 9.0, "position_gain": 5.0}):
        torch.manual_seed(0)
        networks.append(HiGenUNet(config))
        initialize_denoiser(networks[-1], DenoiserStart(**settings))
    released, strong = networks
    for part in ("motion_embedding.out", "appearance_embedding.out"):
        assert not any(weight.any() for weight in released.get_submodule(part).parameters())
    # The same picture and text in every frame: what differs between frames is their place in time.
    seen = []
    strong.skeleton.middle[0].attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    picture, rows = torch.randn(1, 4, 1, 4, 4).expand(-1, -1, 5, -1, -1), appearance_matrix(5, 0.5)[None]
    strong(picture, torch.tensor([500]), torch.randn(1, 3, 8), appearance=rows)
    assert seen[0].std(dim=0).mean() > 0.2 * seen[0].std()
    torch.testing.assert_close(strong.appearance_embedding.hidden(torch.ones(32)), torch.zeros(32), rtol=0, atol=1e-4)
    for name in ("resampler.blocks.0.text1.out.weight", "resampler.blocks.0.text2.out.weight"):
        torch.testing.assert_close(strong.get_parameter(name), 8.0 * released.get_parameter(name))
    queries = "resampler.blocks.0.text1.query.weight"
    torch.testing.assert_close(strong.get_parameter(queries), 9.0 * released.get_parameter(queries))
    text = "skeleton.middle.0.attention.spatial.block.text"
    torch.testing.assert_close(
        strong.get_parameter(f"{text}.out.weight"), 8.0 * released.get_parameter(f"{text}.out.weight")
    )
    torch.testing.assert_close(
        strong.get_parameter(f"{text}.query.weight"), released.get_parameter(f"{text}.query.weight")
    )
    clip = torch.randn(1, 4, 3, 4, 4)
    assert not strong(clip, torch.tensor([5]), torch.randn(1, 3, 8)).any()
