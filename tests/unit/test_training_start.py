"""How the autoencoder's training begins: weights that resample, windows around the objects."""

import pytest
import torch
import torch.nn.functional as F

from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.training.data.clips import stack_videos, to_pixels
from weft.training.data.crops import crop_to_foreground
from weft.training.data.moving_shapes import MovingShapes, MovingShapesConfig
from weft.training.resampling import initialize_as_resampling


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
