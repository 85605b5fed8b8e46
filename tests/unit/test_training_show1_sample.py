"""Videos by trained stages of Show-1, one after the other, without ComfyUI."""

from pathlib import Path

import pytest
import torch

from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.training.build import start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table
from weft.training.data.video_files import read_video
from weft.training.sample_expert import TrainedExpert
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
def expert(tmp_path_factory):
    """A step of an expert on nine frames of 32 x 32, in latents of 8 x 8."""
    folder = tmp_path_factory.mktemp("expert")
    sizes = VideoAutoencoderConfig(4, (1, 4, 4), z_channels=4, embed_dim=4, norm_groups=4, framewise=True)
    torch.manual_seed(0)
    vae, latent = {"vae": VideoAutoencoder(sizes)}, LatentSpec(4, 4, 1)
    save_bundle(folder / "vae.safetensors", vae, system="x", latent=latent, schedule=NoiseSchedule(), metadata={})
    table = read_table(RECIPE)
    del table["stage"], table["pixels"]
    table["task"] = "expert"
    table["autoencoder"] = {"kind": "video", "path": str(folder / "vae.safetensors"), "clips": 8}
    table["network"] = {"model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_factors": [2],
                        "head_width": 8, "stem_heads": 2, "context_width": 16, "norm_groups": 4}  # fmt: skip
    override(table, ["schedule.spacing=roots", "diffusion.last_time=900", "data.frames=9", "data.size=32"])
    start(read_recipe(table, "expert.toml"), folder / "run", CPU).run(max_steps=1)
    return folder / "run"


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


def test_an_expert_enlarges_held_out_clips(expert, tmp_path):
    """Alone, at half of their size; behind the stages on pixels what these have made."""
    sampler = CascadeSampler([expert], CPU)
    captions, given = sampler.captions(3), sampler._given(range(1, 3))
    video = torch.from_numpy(sampler._clips.load(1)[0]).float()
    assert given.shape == (2, 3, 9, 16, 16)
    assert given[0, 0, 2, 0, 1].item() == pytest.approx(video[2, :2, 2:4, 0].mean().item() / 127.5 - 1, abs=1e-5)
    found = sampler(captions[1:], 5, 3.0, seed=5, first=1)
    assert found.shape == (2, 9, 32, 32, 3) and found.dtype == torch.uint8
    assert torch.equal(found, sampler(captions[1:], 5, 3.0, seed=5, first=1))
    assert (found.int() - sampler(captions[1:], 5, 3.0, seed=6, first=1).int()).abs().float().mean() > 1


def test_the_whole_cascade_makes_videos_of_captions(runs, expert, tmp_path):
    assert sample(tmp_path / "all", *(runs / stage for stage in STAGES), expert) == 0
    frames, _ = read_video(tmp_path / "all" / "00001.mp4")
    assert frames.shape == (9, 32, 32, 3)


@pytest.mark.parametrize(("steps", "done"), [(5, 4), (20, 16), (1, 1)])
def test_an_expert_does_the_last_steps_alone(expert, steps, done):
    """From latents of the enlarged clip with as much noise; an exact network gives back what it knows."""
    trained = TrainedExpert(expert, CPU)
    alphas = trained.schedule.alphas_cumprod().float()
    target, seen = torch.randn(1, 4, 2, 8, 8), []

    class Exact(torch.nn.Module):
        def forward(self, x, times, text):
            seen.append((int(times[0]), x[0].clone()))
            alpha = alphas[times].view(-1, 1, 1, 1, 1)
            return (x - alpha.sqrt() * target) / (1 - alpha).sqrt()

    trained.network = Exact()
    small = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    found = trained.sample(small, torch.zeros(2, 1, 16), torch.Generator().manual_seed(3), steps, 4.0)
    assert len(seen) == done
    time, first = seen[0]
    latents = trained.scale * (trained.autoencoder.encode(trained.enlarged(small)) + trained.shift)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    expected = alphas[time].sqrt() * latents + (1 - alphas[time]).sqrt() * noise
    torch.testing.assert_close(first[None], expected, rtol=0, atol=1e-4)
    if done > 1:
        decoded = trained.autoencoder.decode(target / trained.scale - trained.shift)
        # The walk ends at timestep 0, where a little of the noise is left.
        assert (found - decoded).abs().mean() < 0.05 * (trained.enlarged(small) - decoded).abs().mean()


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
    expected = "found runs of the stages base, sr1, expected neighbours in base, interpolation, sr1, expert"
    assert expected in capsys.readouterr().err
    command = ["sample", str(runs / "sr1"), "--out", str(tmp_path / "x"), "--steps", "2"]
    assert main([*command, "--caption", "a red circle"]) == 2
    assert "--caption: this stage goes on from held-out clips" in capsys.readouterr().err
    with pytest.raises(InputError, match="--count: found 50, the data set has 40 held-out clips"):
        CascadeSampler([runs / "sr1"], CPU).captions(50)
    with pytest.raises(InputError, match="--steps: DPM-Solver"):
        CascadeSampler([runs / "base"], CPU)(["a red circle"], 999, 3.0, 0)
