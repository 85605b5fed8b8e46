"""Videos by trained stages of Show-1, one after the other, without ComfyUI."""

from pathlib import Path

import pytest
import torch

from weft.training.build import start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table
from weft.training.data.video_files import read_video
from weft.training.sample_show1 import CascadeSampler, TrainedStage
from weft.training.settings import InputError

RECIPE = Path(__file__).parents[1] / "data" / "training" / "show1.toml"
CPU = torch.device("cpu")
STAGES = {
    "base": ("pixels.shrink=4",),
    "interpolation": ("pixels.shrink=4", "network.in_channels=7", "data.frames=9"),
    "sr1": ("network.in_channels=6", "network.noise_levels=1000", "data.frames=9", "conditioning.highest_level=300"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A step of every stage: three keyframes of 4 x 4, nine frames, then 16 x 16."""
    folder = tmp_path_factory.mktemp("stages")
    for stage, changes in STAGES.items():
        table = read_table(RECIPE)
        override(table, [f"stage={stage}", *changes, "schedule.prediction=velocity"][: None if stage == "sr1" else -1])
        start(read_recipe(table, "show1.toml"), folder / stage, CPU).run(max_steps=1)
    return folder


def sample(out, *sources, count=2):
    return main(["sample", *map(str, sources), "--out", str(out), "--count", str(count), "--steps", "2"])


def test_a_cascade_makes_videos_of_captions(runs, tmp_path):
    assert sample(tmp_path / "all", *(runs / stage for stage in STAGES)) == 0
    frames, _ = read_video(tmp_path / "all" / "00001.mp4")
    assert frames.shape == (9, 16, 16, 3)
    assert len((tmp_path / "all" / "captions.jsonl").read_text().splitlines()) == 2
    assert sample(tmp_path / "keyframes", runs / "base") == 0
    assert read_video(tmp_path / "keyframes" / "00000.mp4")[0].shape == (3, 4, 4, 3)


def test_a_later_stage_goes_on_from_held_out_clips(runs):
    sampler = CascadeSampler([runs / "sr1"], CPU)
    captions = sampler.captions(3)
    given = sampler._given(range(1, 3))
    video = torch.from_numpy(sampler._clips.load(1)[0]).float()
    assert captions[1] == sampler._clips.load(1)[1] and given.shape == (2, 3, 9, 4, 4)
    assert given[0, 0, 2, 0, 1].item() == pytest.approx(video[2, :4, 4:8, 0].mean().item() / 127.5 - 1, abs=1e-5)
    found = sampler(captions[1:], 2, 3.0, seed=5, first=1)
    assert found.shape == (2, 9, 16, 16, 3) and found.dtype == torch.uint8
    assert torch.equal(found, sampler(captions[1:], 2, 3.0, seed=5, first=1))
    keyframes = CascadeSampler([runs / "interpolation"], CPU)
    assert keyframes._given(range(2)).shape == (2, 3, 3, 4, 4)
    assert keyframes(keyframes.captions(2), 2, 3.0, 0).shape == (2, 9, 4, 4, 3)


@pytest.mark.parametrize("stage", ["base", "sr1"])
def test_the_walk_ends_at_what_an_exact_network_predicts(runs, stage):
    """Noise or velocity of one video, whatever the guidance, and the noise that is left at the last step."""
    trained = TrainedStage(runs / stage, CPU)
    target, alphas = torch.rand(2, 3, 3, 4, 4) * 1.8 - 0.9, trained.schedule.alphas_cumprod().float()
    seen_levels = []

    class Exact(torch.nn.Module):
        config = trained.network.config

        def forward(self, x, times, text, noise_level=None):
            seen_levels.append(noise_level)
            alpha = alphas[times].view(-1, 1, 1, 1, 1)
            clean = target.repeat(2, 1, 1, 1, 1)
            noise = (x[:, :3] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            wanted = noise if stage == "base" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
            return torch.cat([wanted, torch.full_like(wanted, 9.0)], 1)

    trained.network = Exact()
    start_noise = torch.randn(2, 3, 3, 4, 4)
    found = trained.sample(start_noise, text=torch.zeros(4, 1, 16), steps=20, guidance=5.0)
    # The released walk ends at the level of the first time, where so much of its noise is left.
    levels = trained.schedule.sigmas().float()
    first = levels[995]
    left = levels[0] / first * (start_noise * (1 + first**2).sqrt() - target)
    # It begins 160 times as wide as a video, and rounds there.
    torch.testing.assert_close(found, target + left, rtol=0, atol=2e-3)
    assert seen_levels[0] is None if stage == "base" else seen_levels[0].tolist() == [250] * 4


def test_bad_runs_are_refused(runs, tmp_path, capsys):
    assert sample(tmp_path / "x", runs / "base", runs / "sr1") == 2
    assert (
        "found runs of the stages base, sr1, expected neighbours in base, interpolation, sr1" in capsys.readouterr().err
    )
    command = ["sample", str(runs / "sr1"), "--out", str(tmp_path / "x"), "--steps", "2"]
    assert main([*command, "--caption", "a red circle"]) == 2
    assert "--caption: this stage goes on from held-out clips" in capsys.readouterr().err
    with pytest.raises(InputError, match="--count: found 50, the data set has 40 held-out clips"):
        CascadeSampler([runs / "sr1"], CPU).captions(50)
    with pytest.raises(InputError, match="--steps: DPM-Solver"):
        CascadeSampler([runs / "base"], CPU)(["a red circle"], 999, 3.0, 0)
