"""Training VersVideo: experts exchange after every step, pictures, its starts, exact resume, the merged file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weft.kernels.layers.experts import ExpertFeedForward
from weft.kernels.networks.versvideo import VersVideoUNet, VersVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule, add_noise, velocity
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import MODEL, LatentSpec, read
from weft.model_loaders.versvideo import file_tensors
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table
from weft.training.sample import Sampler
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """Of single frames, four pixels for a latent."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("autoencoder") / "frames.safetensors"
    parts = {"vae": VideoAutoencoder(VideoAutoencoderConfig(8, (1, 4, 4), norm_groups=4, framewise=True))}
    save_bundle(path, parts, system="x", latent=LatentSpec(4, 4), schedule=NoiseSchedule(), metadata={})
    return path


def recipe_of(autoencoder: Path, *changes: str):
    table = read_table(TINY / "versvideo.toml")
    override(table, [f"autoencoder.path={autoencoder}", *changes])
    return read_recipe(table, "versvideo.toml")


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for part, value in items for key, leaf in tensors_of(value, f"{name}.{part}").items()}


def batch_of(task):
    return task.batch(torch.arange(4), torch.zeros(4, dtype=torch.long))


def test_it_trains_resumes_exactly_and_is_exported_merged(autoencoder, tmp_path):
    trainer = start(recipe_of(autoencoder), tmp_path / "straight", CPU)
    trainer.run()
    start(recipe_of(autoencoder), tmp_path / "resumed", CPU).run(max_steps=7)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    assert states[0]["step"] == 20
    for part in ("networks", "ema", "optimizers", "random"):
        straight, resumed = (tensors_of(state[part]) for state in states)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), part
    assert any(".experts.2." in name for name in tensors_of(states[0]["networks"]))

    out = tmp_path / "vers.safetensors"
    assert main(["export", str(tmp_path / "straight"), "--out", str(out)]) == 0
    checkpoint = read(out)
    assert checkpoint.family == "versvideo" and set(checkpoint.components) == {MODEL, "text_encoder", "vae"}
    assert checkpoint.schedule == NoiseSchedule(0.00085, 0.012, prediction="velocity", eta=0.0)
    assert (checkpoint.latent.channels, checkpoint.latent.spatial, checkpoint.latent.temporal) == (4, 4, 1)
    network, averaged = checkpoint.component(MODEL).build(), trainer.ema.networks[MODEL]
    assert (network.config.spatial_experts, network.config.temporal_experts) == (1, 1)
    x, times, texts = torch.randn(2, 4, 4, 4, 4), torch.tensor([10.0, 700.0]), torch.randn(2, 5, 16)
    with torch.no_grad():
        # Weights were rounded to half precision.
        torch.testing.assert_close(network(x, times, texts), averaged(x, times, texts), rtol=0, atol=2e-2)

    sampler = Sampler(tmp_path / "straight", CPU)
    videos = [sampler(["a red circle moves left to right over a dark background"], 2, 3.0, 0) for _ in range(2)]
    assert videos[0].shape == (1, 4, 16, 16, 3) and torch.equal(*videos)


def test_experts_exchange_after_every_step(autoencoder, tmp_path):
    """Of two runs from one state, one without exchange: the mean is the same, differences shrink by the rate."""
    weights = []
    for rate in (0.0, 0.4):
        trainer = start(recipe_of(autoencoder, f"exchange={rate}", "run.steps=1"), tmp_path / str(rate), CPU)
        layers = [layer for layer in trainer.task.unet.modules() if isinstance(layer, ExpertFeedForward)]
        torch.manual_seed(3)
        for layer in layers:  # they start alike
            for expert in layer.experts:
                expert.inner.weight.data.add_(0.1 * torch.randn_like(expert.inner.weight))
        trainer.run()
        weights.append([torch.stack([e.inner.weight.detach() for e in layer.experts]) for layer in layers])
        counts = {len(layer.experts) for layer in layers}
        assert counts == {2, 3}
    apart = 0
    for before, after in zip(*weights, strict=True):
        count, mean = len(before), before.mean(0)
        torch.testing.assert_close(after.mean(0), mean, rtol=0, atol=1e-6)
        shrunk = (before - mean) * (1 - 0.4 * count / (count - 1))
        torch.testing.assert_close(after - mean, shrunk, rtol=0, atol=1e-6)
        apart += (before - mean).abs().max() > 1e-5
    assert apart > 0


def test_the_loss_is_that_of_the_velocity_and_reaches_all_weights(autoencoder, tmp_path):
    task = start(recipe_of(autoencoder, "pictures.share=0", "diffusion.caption_dropout=0"), tmp_path, CPU).task
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in task.unet.parameters():  # zeros would hide what stands before them
            weight.add_(0.05 * torch.randn_like(weight))
    found = task.losses(batch_of(task), 0)
    found.objectives["denoiser"].backward()
    still = [name for name, weight in task.unet.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still
    latents, noise = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 4, 4, 4, 4)
    times, tokens = torch.tensor([100, 800]), task.tokens[:2]
    task.unet.eval()
    with torch.no_grad():
        context = task.text_encoder(tokens)
        predicted = task.unet(add_noise(task.schedule, latents, times, noise), times, context)
        expected = (predicted - velocity(task.schedule, latents, times, noise)).square().mean((1, 2, 3, 4))
        found = task._loss(task.networks, latents, tokens, times, noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_pictures_are_single_frames_in_their_share_of_steps(autoencoder, tmp_path):
    task = start(recipe_of(autoencoder, "pictures.start=2"), tmp_path, CPU).task
    seen = []
    task.unet.register_forward_pre_hook(lambda network, inputs: seen.append(tuple(inputs[0].shape)))
    for step in range(6):
        task.losses(batch_of(task), step)
    clip, picture = (4, 4, 4, 4, 4), (8, 4, 1, 4, 4)
    assert seen == [clip, clip, clip, picture, clip, picture]


def test_validation_uses_merged_experts_and_no_random_numbers(autoencoder, tmp_path):
    trainer = start(recipe_of(autoencoder), tmp_path, CPU)
    state = torch.get_rng_state()
    with torch.no_grad():
        measured = [trainer.task.validate(trainer.ema.networks) for _ in range(2)]
    assert measured[0] == measured[1] and torch.equal(torch.get_rng_state(), state)


def test_it_starts_without_effect_over_time_and_with_like_experts(autoencoder, tmp_path):
    task = start(recipe_of(autoencoder), tmp_path, CPU).task
    for layer in task.unet.modules():
        if isinstance(layer, ExpertFeedForward):
            first = layer.experts[0].state_dict()
            assert all(torch.equal(x, first[name]) for e in layer.experts for name, x in e.state_dict().items())
    x, times, texts = torch.randn(1, 4, 4, 4, 4), torch.tensor([10.0]), torch.randn(1, 5, 16)
    with torch.no_grad():
        torch.nn.init.normal_(task.unet.conv_out.weight)
        changed = x.clone()
        changed[:, :, 2] += 1
        moved = (task.unet(changed, times, texts) - task.unet(x, times, texts)).abs().amax((0, 1, 3, 4))
    assert (moved > 1e-3).tolist() == [False, False, True, False]


def test_it_starts_as_an_image_model(autoencoder, tmp_path):
    """A file of Stable Diffusion's layout: what a network of these sizes has without what VersVideo adds."""
    torch.manual_seed(0)
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (2,)}
    image = VersVideoUNet(VersVideoUNetConfig(**sizes, heads=2, context_width=16, depth=1))
    added = (".temporal.", ".shift.", ".ste.", ".ce.", ".me.", ".gate", "_layers.2.proj.weight")
    tensors = {
        f"model.diffusion_model.{name}": x.clone()
        for name, x in file_tensors(image.state_dict()).items()
        if not any(part in name or name.endswith(part) for part in added)
    }
    save_file(tensors, tmp_path / "image.safetensors")
    recipe = recipe_of(autoencoder, f"initialization.image_model={tmp_path / 'image.safetensors'}", "run.steps=1")
    trainer = start(recipe, tmp_path / "run", CPU)
    image.start_as_image_model()
    x, times, texts = torch.randn(1, 4, 3, 4, 4), torch.tensor([10.0]), torch.randn(1, 5, 16)
    with torch.no_grad():
        found = trainer.ema.networks[MODEL](x, times, texts)
        torch.testing.assert_close(found, image.eval()(x, times, texts), rtol=0, atol=1e-4)
    trainer.run()
    (tmp_path / "image.safetensors").unlink()
    resume(tmp_path / "run", CPU)  # a run needs it at its start alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("network.model_channels=24",), r"network: width: found 24, expected a multiple of 16 \(what excitations"),
        (("network.heads=3",), r"network: width: found 32, expected a multiple of 3 \(network\.heads"),
        (("network.spatial_experts=0",), r"network\.spatial_experts: found 0, expected at least 1"),
        (("network.out_channels=8",), r"network\.out_channels: found 8, expected network\.in_channels = 4"),
        (("network.context_width=32",), r"network\.context_width: found 32, the text encoder has 16"),
        (("exchange=2",), r"exchange: found 2\.0, expected at most 1"),
    ],
)
def test_bad_recipes(autoencoder, changes, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        start(recipe_of(autoencoder, *changes), tmp_path / "run", CPU)


@pytest.mark.parametrize(
    ("name", "merged", "dealt"), [("versvideo_l", 297_463_560, 1.92e9), ("versvideo_h", 1_799_515_512, 11.9e9)]
)
def test_recipes_are_the_papers(name, merged, dealt):
    recipe = read_recipe(read_table(RECIPES / f"{name}.toml"), name)
    with torch.device("meta"):
        network = VersVideoUNet(recipe.network)
    assert sum(x.numel() for x in network.parameters()) == pytest.approx(dealt, rel=0.005)
    assert sum(x.numel() for x in network.merged().parameters()) == merged
    assert recipe.run.steps == 100_000 and recipe.optimization.learning_rate == 5e-5 and recipe.exchange == 0.001
    assert recipe.schedule.noise_schedule() == NoiseSchedule(0.00085, 0.012, prediction="velocity", eta=0.0)
