"""Training the unified ControlNet: what is frozen, its maps, exact resume, the exported file, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.networks.unified_control import UnifiedControlNet
from weft.kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule, add_noise
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec, read
from weft.model_loaders.versvideo import SCHEDULE
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.condition_maps import ClipMaps, distance_from_background, soft_edges
from weft.training.config import override, read_recipe, read_table
from weft.training.control_settings import ConditionMaps
from weft.training.control_task import edges_of
from weft.training.data.captions import caption_terms
from weft.training.data.moving_shapes import MovingShapesConfig, write_dataset
from weft.training.data.video_files import write_video
from weft.training.sections import FolderData, MovingShapesData
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
NAMES = ("image", "canny", "hed", "depth")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A bundle of a small VersVideo with random weights."""
    torch.manual_seed(0)
    config = VersVideoUNetConfig(
        model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), heads=2, context_width=16,
        depth=1,
    )  # fmt: skip
    sizes = VideoAutoencoderConfig(n_hiddens=4, downsample=(1, 8, 8), norm_groups=4, framewise=True)
    parts = {
        "diffusion_model": VersVideoUNet(config),
        "vae": VideoAutoencoder(sizes),
        "text_encoder": CaptionEncoder(CaptionEncoderConfig(caption_terms(), 16, 1, 2, 20)),
    }
    path = tmp_path_factory.mktemp("model") / "vers.safetensors"
    latent = LatentSpec(4, 8, 1, 0.7, 0.1)
    save_bundle(path, parts, system="versvideo", latent=latent, schedule=SCHEDULE, metadata={}, dtype=torch.float32)
    return path


def recipe_of(model: Path, *changes: str):
    table = read_table(TINY / "versvideo_control.toml")
    override(table, [f"denoiser.path={model}", f"autoencoder.path={model}", *changes])
    return read_recipe(table, "versvideo_control.toml")


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for part, value in items for key, leaf in tensors_of(value, f"{name}.{part}").items()}


def test_it_trains_resumes_exactly_and_is_read_back(model, tmp_path):
    trainer = start(recipe_of(model), tmp_path / "straight", CPU)
    task = trainer.task
    assert (task.facts["scale"], task.facts["shift"]) == (0.7, 0.1), "those of the denoiser"
    frozen = {"denoiser": task.denoiser, "text": task.text_encoder, "vae": task.autoencoder}
    before = {part: {key: x.clone() for key, x in network.state_dict().items()} for part, network in frozen.items()}
    trainer.run()
    for part, network in frozen.items():
        assert all(torch.equal(x, before[part][key]) for key, x in network.state_dict().items()), part
    start(recipe_of(model), tmp_path / "resumed", CPU).run(max_steps=7)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    for part in ("networks", "ema", "optimizers", "random"):
        straight, resumed = (tensors_of(state[part]) for state in states)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), part

    out = tmp_path / "control.safetensors"
    assert main(["export", str(tmp_path / "straight"), "--out", str(out)]) == 0
    checkpoint = read(out)
    assert checkpoint.metadata["denoiser"] == "vers.safetensors"
    network, averaged = checkpoint.component("control_net").build(), trainer.ema.networks["control_net"]
    assert isinstance(network, UnifiedControlNet) and network.config == averaged.config
    found = network.state_dict()
    assert all(torch.equal(found[name].float(), x.half().float()) for name, x in averaged.state_dict().items())
    assert any(x.any() for name, x in found.items() if name.startswith("zero_convs"))


def test_gradients_reach_the_shared_network_and_the_adapter_of_the_batch(model, tmp_path):
    task = start(recipe_of(model), tmp_path, CPU).task
    network = task.networks["control_net"]
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():  # zeros would hide what stands before them
            weight.add_(0.05 * torch.randn_like(weight))
    for first, name in enumerate(NAMES):
        network.zero_grad()
        indices = torch.tensor([first, 4])
        batch = task.batch(indices, torch.zeros(2, dtype=torch.long))
        assert batch[-1].tolist() == [first, first]
        task.losses(batch, 0).objectives["denoiser"].backward()
        for key, weight in network.named_parameters():
            idle = key.startswith("adapters.") and not key.startswith(f"adapters.{name}.")
            assert (weight.grad is None or not weight.grad.any()) == idle, key
    assert all(weight.grad is None for weight in task.denoiser.parameters())


def test_the_loss_begins_as_the_denoisers(model, tmp_path):
    task = start(recipe_of(model), tmp_path, CPU).task
    latents, noise = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)
    times, tokens = torch.tensor([100, 800]), task.tokens[:2]
    cues = {"hints": torch.rand(2, 3, 3, 32, 32), "condition": torch.tensor([2, 2])}
    with torch.no_grad():
        found = task._loss(task.networks, latents, tokens, times, noise, **cues)
        noisy = add_noise(task.schedule, latents, times, noise)
        predicted = task.denoiser(noisy, times, task.text_encoder(tokens))
        expected = task._errors(predicted, latents, times, noise)
    assert torch.equal(found, expected)


def test_maps_are_of_the_clips():
    data = MovingShapesData(size=32, frames=3, two_objects=0.0)
    settings = ConditionMaps(low_threshold=0.1, high_threshold=0.2)
    maps = ClipMaps(data, "train", NAMES, settings)
    videos = torch.stack([torch.from_numpy(maps.clips.load(index)[0]) for index in (3, 5)]).movedim(-1, 2) / 255
    found = {name: maps(number, [3, 5]) for number, name in enumerate(NAMES)}
    assert all(x.shape == (2, 3, 3, 32, 32) and x.min() >= 0 and x.max() <= 1 for x in found.values())
    assert torch.equal(found["image"], videos[:, :1].expand_as(videos))
    edges = edges_of(videos.flatten(0, 1), settings).unflatten(0, (2, 3))
    assert torch.equal(found["canny"], edges.expand_as(videos)) and edges.any()
    # The object moves: so do its maps.
    for name in ("canny", "hed", "depth"):
        assert (found[name][:, 0] - found[name][:, 2]).abs().amax((1, 2, 3)).min() > 0.1


def test_drawn_maps():
    frame = torch.full((1, 3, 12, 12), 0.2)
    frame[:, 1, 4:8, 4:8] = 0.9
    depth = distance_from_background(frame)
    assert depth.sum() == 16 and depth[0, 0, 4:8, 4:8].all()
    soft = soft_edges(frame)
    assert soft[0, 0, 0, 0] == 0 and soft[0, 0, 4, 4] > 0.3 and soft.max() <= 0.7
    assert torch.equal(soft_edges(frame.flip(-1)), soft.flip(-1))


def test_maps_of_folders_are_read_beside_the_clips(tmp_path):
    write_dataset(tmp_path / "clips", 3, MovingShapesConfig(size=32, frames=6, count=3, seed=1))
    (tmp_path / "maps").mkdir()
    for index in range(3):
        levels = np.arange(6, dtype=np.uint8)[:, None, None, None] * 20 + 60 * (index == 2)
        write_video(tmp_path / "maps" / f"{index:05d}.mp4", np.broadcast_to(levels, (6, 32, 32, 3)).copy(), 8)
    data = FolderData(path=str(tmp_path / "clips"), size=32, frames=3, held_out=1)
    maps = ClipMaps(data, "train", ("hed", "image"), ConditionMaps(hed=str(tmp_path / "maps")))
    hed = maps(0, [1])[0, :, 0, 5, 5] * 255
    # The same window of frames as that of the clip.
    rng = np.random.default_rng((data.seed, 0, 1))
    first = int(rng.integers(6 - 3 + 1))
    assert (hed - torch.tensor([20.0 * (first + frame) for frame in range(3)])).abs().max() < 4
    (tmp_path / "maps" / "00001.mp4").rename(tmp_path / "maps" / "other.mp4")
    with pytest.raises(RecipeError, match=r"hints\.hed: found 2 videos in .*maps, expected those of data\.path by"):
        ClipMaps(data, "train", ("hed",), ConditionMaps(hed=str(tmp_path / "maps")))
    with pytest.raises(RecipeError, match=r"no maps of 'depth', expected hints\.depth with a folder of such maps"):
        ClipMaps(data, "train", ("depth",), ConditionMaps())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ('conditions=["canny", "pose"]',),
            r"conditions: there are no maps of 'pose', expected image, canny, hed or",
        ),
        (
            ('conditions=["canny", "canny"]',),
            r"conditions: found \['canny', 'canny'\], expected at least one, and",
        ),
        (("schedule.prediction=noise",), "schedule: found .*, expected .*velocity.*: the denoiser's, by which it sam"),
        (("hints.low_threshold=0.9",), r"hints\.low_threshold: found 0\.9, expected at most"),
        (("diffusion.caption_preference=1.0",), "found it with maps, which show the direction"),
    ],
)
def test_bad_recipes(model, changes, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        start(recipe_of(model, *changes), tmp_path / "run", CPU)


def test_a_denoiser_of_another_system_is_refused(tmp_path):
    path = tmp_path / "vae.safetensors"
    parts = {"vae": VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=4, norm_groups=4))}
    save_bundle(path, parts, system="x", latent=LatentSpec(), schedule=NoiseSchedule(), metadata={})
    with pytest.raises(RecipeError, match=r"denoiser\.path: .* holds vae, expected a VersVideoUNet"):
        start(recipe_of(path), tmp_path / "run", CPU)
