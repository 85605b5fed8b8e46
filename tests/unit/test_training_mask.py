"""Training LVDM's mask models: what is given, the released loss, exact resume, what they go on from, the file."""

from pathlib import Path

import pytest
import torch

from weft.kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import MODEL, LatentSpec, read
from weft.training import checkpoints
from weft.training.build import build_task, resume, start
from weft.training.cli import main
from weft.training.config import MaskRecipe, override, read_recipe, read_table
from weft.training.initial_weights import start_from
from weft.training.mask_settings import LatentWindow, Masks
from weft.training.mask_task import drawn_masks, drawn_window
from weft.training.metrics import read_rows
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
INTERPOLATION = (
    "latents.length=5",
    "latents.every=1",
    "masks.first=0.0",
    "masks.ends=0.9",
    "network.temporal_length=5",
)
SHORT = ("network.in_channels=4", "network.noise_levels=0", "masks.first=0.0", "masks.ends=0.0", "masks.levels=0")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """A 3D autoencoder of random weights that makes eight latents of sixteen frames."""
    path = tmp_path_factory.mktemp("autoencoder") / "vae.safetensors"
    torch.manual_seed(0)
    network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(2, 4, 4), norm_groups=4))
    save_bundle(
        path, {"vae": network}, system="lvdm", latent=LatentSpec(4, 4, 2), schedule=NoiseSchedule(), metadata={}
    )
    return path


@pytest.fixture
def recipe_of(autoencoder, tmp_path):
    def make(*changes: str) -> MaskRecipe:
        table = read_table(TINY / "mask.toml")
        override(table, [f"autoencoder.path={autoencoder}", f"autoencoder.cache={tmp_path / 'latents'}", *changes])
        recipe = read_recipe(table, "mask.toml")
        assert isinstance(recipe, MaskRecipe)
        return recipe

    return make


@pytest.mark.parametrize(
    "changes", [(), INTERPOLATION, SHORT], ids=["prediction", "interpolation", "short videos, nothing given"]
)
def test_twenty_steps_resume_exactly_and_are_read_back(recipe_of, changes, tmp_path):
    start(recipe_of(*changes), tmp_path / "straight", CPU).run()
    start(recipe_of(*changes), tmp_path / "resumed", CPU).run(max_steps=11)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    straight, resumed = (checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed"))
    for part in ("networks", "ema"):
        one, other = (state[part] if part == "networks" else state[part]["networks"] for state in (straight, resumed))
        for role, tensors in one.items():
            assert all(torch.equal(tensor, other[role][name]) for name, tensor in tensors.items()), (part, role)
    rows = [row["loss"] for row in read_rows(tmp_path / "straight" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 4 and rows[-1] < rows[0], rows

    out = tmp_path / "mask.safetensors"
    assert main(["export", str(tmp_path / "straight"), "--out", str(out)]) == 0
    checkpoint = read(out)
    component = checkpoint.component(MODEL)
    assert component.network is LatentVideoUNet and component.config == recipe_of(*changes).network
    assert (checkpoint.latent.channels, checkpoint.latent.temporal, checkpoint.latent.spatial) == (4, 2, 4)


def test_the_loss_is_the_released_one(recipe_of, tmp_path):
    """FACTS 5.2 and 5.4 by hand: given latents replaced, both noises predicted, the mask behind, the level told."""
    task = build_task(recipe_of(), tmp_path, CPU)
    torch.manual_seed(1)
    latents, noise, given_noise = (torch.randn(2, 4, 3, 4, 4) for _ in range(3))
    mask = torch.zeros(2, 1, 3, 4, 4)
    mask[0, :, 0] = 1
    times, level = torch.tensor([700, 20]), torch.tensor([249, 3])
    for parameter in task.unet.parameters():
        parameter.data.normal_(0, 0.1)
    cues = {"mask": mask, "level": level, "given_noise": given_noise}
    found = task._loss(task.networks, latents, torch.zeros(2, 1), times, noise, **cues)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, 0)

    def noised(clip, time, fresh):
        return (abar[time] ** 0.5 * clip.double() + (1 - abar[time]) ** 0.5 * fresh.double()).float()

    for index in range(2):
        z = noised(latents[index], times[index], noise[index])
        target = noise[index].clone()
        if index == 0:
            z[:, 0] = noised(latents[0, :, 0], 249, given_noise[0, :, 0])
            target[:, 0] = given_noise[0, :, 0]
        network_input = torch.cat([z, mask[index]])[None]
        one = slice(index, index + 1)
        predicted = task.unet(network_input, times[one], noise_level=level[one])[0]
        torch.testing.assert_close(found[index], (predicted - target).abs().mean(), rtol=1e-5, atol=0)


def test_masks_are_drawn_at_the_releases_shares():
    """A standard deviation of these shares is 0.004."""
    torch.manual_seed(0)
    prediction, interpolation = Masks(), Masks(first=0.0, ends=0.9)
    masks = drawn_masks(prediction, 16_000, 4)
    kinds = {tuple(row) for row in masks.tolist()}
    assert kinds == {(0, 0, 0, 0), (1, 0, 0, 0)} and abs(float(masks[:, 0].mean()) - 0.5) < 0.02
    masks = drawn_masks(interpolation, 16_000, 5)
    kinds = {tuple(row) for row in masks.tolist()}
    assert kinds == {(0, 0, 0, 0, 0), (1, 0, 0, 0, 1)} and abs(float(masks[:, 0].mean()) - 0.9) < 0.02
    both = drawn_masks(Masks(first=0.3, counts=(1, 2), ends=0.5), 16_000, 4)
    shares = {kind: (both == torch.tensor(kind)).all(1).float().mean() for kind in [(1, 0, 0, 0), (1, 1, 0, 0)]}
    assert all(abs(float(share) - 0.15) < 0.02 for share in shares.values())


def test_samples_are_latents_apart():
    torch.manual_seed(0)
    window = LatentWindow(length=4, every=4)
    begun = {tuple(drawn_window(16, window)) for _ in range(200)}
    assert begun == {(begin, begin + 4, begin + 8, begin + 12) for begin in range(4)}
    assert drawn_window(16, window, 0) == [0, 4, 8, 12]


def test_it_goes_on_from_a_model_without_masks(recipe_of, tmp_path):
    """With no latent given it predicts what that one does, at every level: what is new is without effect."""
    small = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (2,)}
    short = LatentVideoUNet(LatentVideoUNetConfig(4, 4, **small, num_heads=2, temporal_length=3, norm_groups=8))
    torch.manual_seed(3)
    for parameter in short.parameters():
        parameter.data.normal_(0, 0.2).copy_(parameter.half())  # as files hold it
    path = tmp_path / "short.safetensors"
    vae = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(2, 4, 4), norm_groups=4))
    parts = {"vae": vae, "diffusion_model": short}
    save_bundle(path, parts, system="lvdm", latent=LatentSpec(4, 4, 2), schedule=NoiseSchedule(), metadata={})
    for changes in ((), INTERPOLATION):
        network = LatentVideoUNet(recipe_of(*changes).network)
        start_from(path, {"diffusion_model": network})
        x, times = torch.randn(2, 4, 3, 4, 4), torch.tensor([500, 3])
        masked = torch.cat([x, torch.zeros(2, 1, 3, 4, 4)], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(network(masked, times, noise_level=torch.tensor([7, 0])), short(x, times))
    wide = LatentVideoUNet(LatentVideoUNetConfig(5, 4, **{**small, "model_channels": 16}, num_heads=2, norm_groups=8))
    with pytest.raises(RecipeError, match="has model_channels 8, the recipe has 16"):
        start_from(path, {"diffusion_model": wide})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network.in_channels=6", r"network.in_channels: found 6, expected network.out_channels \+ 1 = 5"),
        (
            "network.in_channels=4",
            "network.in_channels: found 4, which leaves no place for a mask; expected masks.first",
        ),
        ("network.noise_levels=8", "network.noise_levels: found 8, expected at least masks.levels = 250"),
        ("masks.ends=0.6", "masks.first, masks.ends: found 0.5 and 0.6, expected a sum of at most 1"),
        ("masks.counts=[3]", r"latents.length: found 3, expected more than the most latents that are given \(3\)"),
        ("latents.length=2", None),
    ],
)
def test_impossible_recipes(recipe_of, change, message):
    if message is None:
        assert recipe_of(change).latents.length == 2
        return
    with pytest.raises(RecipeError, match=message):
        recipe_of(change)


def test_clips_are_long_enough(recipe_of, tmp_path):
    with pytest.raises(RecipeError, match="data.frames: found 8, expected at least 10: a sample spans 5 latents"):
        build_task(recipe_of("data.frames=8", "data.part=4"), tmp_path, CPU)


def test_captions_of_long_clips_are_for_no_text_model():
    table = read_table(TINY / "text_to_video.toml")
    override(table, ["data.frames=16", "data.part=8", "autoencoder.path=x"])
    with pytest.raises(RecipeError, match="data.part: found 8 with the task 'text_to_video', which reads one caption"):
        read_recipe(table, "r.toml")
