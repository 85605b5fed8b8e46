"""Training HARIVO: what gets gradients, what each loss needs, exact resume, the exported file."""

from pathlib import Path

import pytest
import torch

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.networks.harivo import MotionConfig, MotionNetwork
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec, read
from weft.model_loaders.harivo import MOTION
from weft.model_loaders.image_unet import ImageUNetConfig
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import HarivoRecipe, override, read_recipe, read_table
from weft.training.data.captions import caption_terms, with_other_directions
from weft.training.harivo_task import check_layout, start_motion
from weft.training.image_unet import ImageUNet, component_of
from weft.training.metrics import read_rows
from weft.training.motion_losses import attention_change
from weft.training.moving_unet import MovingUNet, attention_changes
from weft.training.place_words import PlaceWords
from weft.training.sample import Sampler
from weft.training.settings import RecipeError
from weft.training.start_settings import MotionStart
from weft.training.text import caption_tokens

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
WIDTHS = (32, 32, 64, 64)
NO_LOSSES = ("losses.attention=0", "losses.image=0", "losses.contrast=0")


def image_unet(**changes):
    from diffusers import UNet2DConditionModel

    sizes = {"block_out_channels": WIDTHS, "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16}
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**sizes, "sample_size": 8, **changes}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A frame-wise autoencoder and an image model."""
    folder = tmp_path_factory.mktemp("models")
    changes = ["network.downsample=[1, 4, 4]", "network.framewise=true", "crops.steps=0", "data.size=32"]
    sets = [part for change in changes for part in ("--set", change)]
    command = ["train", str(TINY / "autoencoder.toml"), "--out", str(folder / "autoencoder"), "--device", "cpu"]
    assert main([*command, *sets]) == 0
    return {"autoencoder": folder / "autoencoder", "image_model": image_model(folder / "image.safetensors")}


def image_model(path: Path, with_text: bool = True, places: bool = False, **changes) -> Path:
    """A model file of an image UNet with random weights and of its caption encoder."""
    sizes = {"in_channels": 4, "model_channels": 32, "channel_mult": (1, 1, 2, 2), "num_res_blocks": 1}
    torch.manual_seed(0)
    unet = ImageUNet(ImageUNetConfig(**{**sizes, "context_width": 16, "heads": 2, **changes}))
    parts = {"diffusion_model": component_of(unet)}
    if with_text:
        parts["text_encoder"] = CaptionEncoder(CaptionEncoderConfig(caption_terms(places), 16, 1, 2, 20))
    latent = LatentSpec(scale=0.7, shift=0.1)
    save_bundle(path, parts, system="image", latent=latent, schedule=NoiseSchedule(), metadata={})
    return path


def recipe_of(models: dict[str, Path], *changes: str) -> HarivoRecipe:
    table = read_table(TINY / "harivo.toml")
    override(table, [*(f"{name}.path={path}" for name, path in models.items()), *changes])
    return read_recipe(table, "harivo.toml")


def batch_of(task):
    return task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))


def test_gradients_reach_motion_alone(models, tmp_path):
    """Every weight of it after three steps: some begin at zero and hide those before them."""
    trainer = start(recipe_of(models), tmp_path / "run", CPU)
    task = trainer.task
    assert (task.facts["scale"], task.facts["shift"]) == (0.7, 0.1), "those of the image model"
    frozen = {"unet": task.image_unet, "text": task.text_encoder, "vae": task.autoencoder}
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in frozen.items()}
    trained = {"motion": task.unet, "projection": task.companions["projection"]}
    start_weights = {
        (name, key): weight.clone() for name, part in trained.items() for key, weight in part.named_parameters()
    }
    seen = set()
    losses = task.losses

    def with_hooks(batch, step):
        for name, part in trained.items():
            seen.update((name, key) for key, weight in part.named_parameters() if weight.grad is not None
                        and weight.grad.any())  # fmt: skip
        return losses(batch, step)

    task.losses = with_hooks
    for optimizer in trainer.optimizers.values():
        optimizer.zero_grad = lambda: None  # gradients add up, so that the next step sees them
    trainer.run()
    assert seen == set(start_weights)
    for name, part in frozen.items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
        assert all(weight.grad is None for weight in part.parameters())
    assert set(task.networks) == {MOTION} and set(task.companions) == {"projection", "queue"}
    for (name, key), value in start_weights.items():
        assert not torch.equal(trained[name].get_parameter(key), value), key


def test_losses_without_weight_are_not_computed(models, tmp_path):
    """One pass of the UNet and no attention maps in the baseline; each loss adds its own."""
    expected = {
        "attention": (("losses.image=0", "losses.contrast=0"), 1),
        "image": (("losses.attention=0", "losses.contrast=0"), 2),
        "contrast": (("losses.image=0", "losses.attention=0"), 1),
        None: (NO_LOSSES, 1),
    }
    for index, (loss, (changes, passes)) in enumerate(expected.items()):
        task = start(recipe_of(models, *changes), tmp_path / str(index), CPU).task
        calls = []
        task.image_unet.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(inputs))
        task.losses(batch_of(task), 0)
        assert len(calls) == passes
        metrics = task.losses(batch_of(task), 1).metrics
        assert set(metrics) == {"loss"} | ({loss} if loss else set())
        assert all(value.isfinite() and value != 0 for value in metrics.values())
        assert set(task.companions) == ({"projection", "queue"} if loss == "contrast" else set())


def test_weights_multiply_the_losses(models, tmp_path):
    task = start(recipe_of(models, "losses.image=0.5", "losses.attention=2"), tmp_path, CPU).task
    for step in range(2):
        torch.manual_seed(0)
        losses = task.losses(batch_of(task), step)
    found = losses.metrics
    expected = found["loss"] + 2 * found["attention"] + 0.5 * found["image"] + 0.1 * found["contrast"]
    torch.testing.assert_close(losses.objectives["denoiser"], expected, rtol=1e-5, atol=0)


def test_the_image_model_teaches_where_things_are(models, tmp_path):
    """Each frame by itself, with a caption of its own; clips whose caption is left out learn nothing by it."""
    taught = {**models, "image_model": image_model(tmp_path / "image.safetensors", places=True)}
    changes = (*NO_LOSSES, "losses.places=3", "network.mapping=false", "network.frame_tokens=0", "data.frames=4")
    for dropout in (0, 1):
        task = start(
            recipe_of(taught, *changes, f"diffusion.caption_dropout={dropout}"), tmp_path / f"{dropout}", CPU
        ).task
        losses = task.losses(batch_of(task), 0)
        found = losses.metrics["places"]
        torch.testing.assert_close(losses.objectives["denoiser"], found * 3 + losses.metrics["loss"], rtol=1e-5, atol=0)
        assert (found > 0) == (dropout == 0)
    # Motion without effect and captions that are those of the frames: there is no difference left.
    mean, logvar, _, places = task.batch(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    captions = task.clips.picture_captions(2)
    assert torch.equal(places[2], caption_tokens(task.text_encoder.config, captions))
    noisy, times = torch.randn(mean.shape), torch.full((4,), 500)
    alone = task._frame_by_frame(noisy, times, places)
    with torch.no_grad():
        one = task.image_unet(noisy[2, :, 1:2].transpose(0, 1), times[:1], task.text_encoder(places[2, 1:2])).sample
    torch.testing.assert_close(alone[2, :, 1], one[0], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert task.validate(task.networks)["loss"] > 0


def test_frame_tokens_learn_words_first(models, tmp_path):
    """Those of each frame's caption for the objects' places, without the image model; then everything learns."""
    taught = {**models, "image_model": image_model(tmp_path / "image.safetensors", places=True)}
    changes = (*NO_LOSSES, "losses.tokens_first=1", "network.frame_tokens=6", "diffusion.caption_dropout=0")
    task = start(recipe_of(taught, *changes), tmp_path / "run", CPU).task
    calls = []
    task.image_unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    batch, parts = batch_of(task), {name.split(".")[0] for name, _ in task.unet.named_parameters()}
    for step in range(2):
        task.unet.zero_grad()
        losses = task.losses(batch, step)
        losses.objectives["denoiser"].backward(inputs=task.parameters()["denoiser"])
        learned = {name.split(".")[0] for name, weight in task.unet.named_parameters() if weight.grad is not None}
        assert (learned, len(calls)) == (({"tokens"}, 0) if step == 0 else (parts, 1))
    # Tokens that are these words have no error.
    frames = task.recipe.data.frames
    words, count = task._place_words(placed := batch[3].flatten(0, 1), task.text_encoder(placed))
    task.unet.tokens.forward = lambda text: torch.where(count[..., None], words, 1e3).unflatten(0, (-1, frames))
    assert task.losses(batch, 0).metrics["loss"] == 0


def test_words_for_places_have_a_token_each():
    config = CaptionEncoderConfig(caption_terms(places=True), width=8, heads=2, max_tokens=20)
    captions = [
        "a red circle at the top left over a grey background",
        "a red circle at the right over a dark background",
        "a red circle over a dark background and a blue square at the middle centre over a dark background",
    ]
    tokens = caption_tokens(config, captions)
    encoded = torch.arange(tokens.numel(), dtype=torch.float32).view(*tokens.shape, 1)
    words, count = PlaceWords(config, 6)(tokens, encoded)
    said = [
        [config.tokens[tokens.flatten()[int(word)]] if counts else None for word, counts in zip(*row, strict=True)]
        for row in zip(words[..., 0].tolist(), count.tolist(), strict=True)
    ]
    assert said == [
        ["at the", "top", "left", "<end>", "<end>", "<end>"],
        ["at the", None, "right", "<end>", "<end>", "<end>"],
        [None, None, None, "at the", "middle", "centre"],
    ]
    words, count = PlaceWords(config, 3)(tokens, encoded)
    assert count.tolist() == [[True] * 3, [True, False, True], [False] * 3]


def test_a_teacher_knows_which_way_clips_go(models, tmp_path):
    """Flat clips are taught, with captions of their own and of other directions; validation asks for the noise."""
    higen = Path(__file__).resolve().parents[2] / "demo_models" / "higen.safetensors"
    image = image_model(tmp_path / "image.safetensors", in_channels=8)
    changes = (*NO_LOSSES, f"teacher.path={higen}", "teacher.other_captions=1", "diffusion.caption_dropout=0")
    shown = ("data.size=64", 'data.styles=["flat", "shaded"]', "autoencoder.clips=8")
    with pytest.raises(RecipeError, match="teacher.path: .* reads 8 latent channels, the recipe's autoencoder has 4"):
        start(recipe_of(models, *changes), tmp_path / "other", CPU)
    task = start(recipe_of({"autoencoder": higen, "image_model": image}, *changes, *shown), tmp_path / "run", CPU).task
    seen = {}

    def targets(latents, times, noise, tokens, taught, facts):
        seen.update(tokens=tokens, taught=taught)
        return noise + 1

    task._teacher.targets = targets
    indices = torch.arange(len(task.tokens))
    losses = task.losses(task.batch(indices, torch.zeros_like(indices)), 0)
    assert losses.metrics["loss"] > 1 and losses.metrics["taught"] > 1
    assert seen["taught"].tolist() == [task.clips.clip(index).style == "flat" for index in range(len(indices))]
    config = task.text_encoder.config
    for index, (row, known) in enumerate(zip(seen["tokens"], seen["taught"].tolist(), strict=True)):
        caption = task.train_latents.captions[index]
        options = (with_other_directions(caption) if known else []) or [caption]
        assert (row == caption_tokens(config, options)).all(dim=1).any()
    with torch.no_grad():
        assert task.validate(task.networks)["loss"] > 0


def test_frame_tokens_that_learn_first_must_exist(models):
    with pytest.raises(RecipeError, match="losses.tokens_first: found 5 with network.frame_tokens = 0, expected 0"):
        recipe_of(models, "losses.tokens_first=5", "network.frame_tokens=0")


def test_where_things_are_needs_words_and_data_that_say_it(models, tmp_path):
    with pytest.raises(RecipeError, match="losses.places: the given text encoder has no words for places"):
        start(recipe_of(models, "losses.places=1"), tmp_path / "run", CPU)
    with pytest.raises(RecipeError, match="losses.places: found 1.0 with data of kind 'folder', expected moving_shap"):
        recipe_of(models, 'data={kind = "folder", path = "clips", size = 32, frames = 4}', "losses.places=1.0")


@pytest.mark.parametrize("changes", [("network.mapping=false",), ("network.frame_tokens=0",), ("network.middle=true",)])
def test_parts_are_switched_off_alone(models, tmp_path, changes):
    network = start(recipe_of(models, *changes), tmp_path, CPU).task.unet
    found = (network.mapping is None, network.tokens is None, len(network.middle))
    wanted = ("mapping" in changes[0], "tokens" in changes[0], int("middle" in changes[0]))
    assert found == wanted


def test_resumed_run_equals_straight_run(models, tmp_path):
    """Weights, averages, the queue and its projection, random states and metrics."""
    start(recipe_of(models), tmp_path / "straight", CPU).run()
    start(recipe_of(models), tmp_path / "resumed", CPU).run(max_steps=3)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    for part in ("networks", "ema", "optimizers", "random"):
        tensors = [flatten(state[part]) for state in states]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]), part
    # Four steps of four clips give 32 features; the queue holds the newest twelve, of length one.
    queue = states[0]["networks"]["queue"]
    assert queue["filled"] == 12
    torch.testing.assert_close(queue["features"].norm(dim=1), torch.ones(12))
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("straight", "resumed")]
    assert [row.get("validation_loss") for row in rows[0]] == [
        row.get("validation_loss") for row in rows[1] if row["step"] != 3
    ]


def flatten(state: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for part, value in items for key, leaf in flatten(value, f"{name}.{part}").items()}


def test_exported_file_is_the_trained_network(models, tmp_path):
    run, out = tmp_path / "run", tmp_path / "motion.safetensors"
    trainer = start(recipe_of(models, "run.steps=2", "fps=6"), run, CPU)
    trainer.run()
    assert main(["export", str(run), "--out", str(out)]) == 0
    checkpoint = read(out)
    component = checkpoint.component(MOTION)
    averaged = trainer.ema.networks[MOTION]
    assert checkpoint.family == "harivo" and component.config == averaged.config
    assert component.tensors.keys() == averaged.state_dict().keys()
    # As other exported files: half of the size.
    assert all(torch.equal(component.tensors[name], value.half()) for name, value in averaged.state_dict().items())
    assert checkpoint.schedule == NoiseSchedule(0.00085, 0.012, spacing="even")
    said = checkpoint.metadata
    assert (said["fps"], said["resolution"], said["num_frames"]) == ("6", "32", "4")
    assert said["steps"] == '{"harivo": 2}' and '"moving_shapes"' in said["dataset"] and said["revision"]
    again = start(recipe_of(models, f"initialization.weights={out}"), tmp_path / "again", CPU).task
    assert all(torch.equal(value, component.tensors[name].float()) for name, value in again.unet.state_dict().items())
    assert (again.facts["scale"], again.facts["shift"]) == (0.7, 0.1)
    assert main(["export", str(run), str(models["autoencoder"]), "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.frames=5", "data.frames: found 5, expected at most network.max_frames = 4"),
        ("data.frames=1", "data.frames: found 1, expected at least 2"),
        ("schedule.prediction=velocity", "schedule: expected prediction = .noise. without zero_terminal_snr"),
        ("network.frame_tokens=-1", "network.frame_tokens: found -1, expected at least 0"),
        ("text_encoder.kind=captions", "text_encoder.kind: found 'captions', expected one of 'clip', 'image_model'"),
    ],
)
def test_impossible_recipes_are_refused(models, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(models, change)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (32, 32, 64)}, "has 3 levels, expected the layout of Stable Diffusion 1.5: 4 levels"),
        ({"transformer_layers_per_block": 2}, "2 blocks in a transformer, expected the layout"),
        ({"in_channels": 9}, "reads 9 channels and predicts 4, expected a model that is neither for inpainting"),
    ],
)
def test_other_image_models_are_refused(changes, message):
    """Of diffusers; ours have the layout."""
    if "block_out_channels" in changes:
        changes = {**changes, "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
                   "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2}  # fmt: skip
    with pytest.raises(RecipeError, match=message):
        check_layout(image_unet(**changes), "folder")


def test_parts_that_do_not_fit_each_other_are_refused(models, tmp_path):
    folder = models["autoencoder"]
    for number, (changes, message) in enumerate(
        [
            ({"context_width": 24}, "image_model: reads text of width 24, the text encoder has 16"),
            ({"in_channels": 8}, "image_model: found 8, the autoencoder has 4"),
            ({"with_text": False}, "has no caption encoder; expected kind = .clip. and its path"),
        ]
    ):
        other = image_model(tmp_path / f"{number}.safetensors", **changes)
        with pytest.raises(RecipeError, match=message):
            start(recipe_of({"autoencoder": folder, "image_model": other}), tmp_path / str(number), CPU)


def test_changes_of_attention_are_those_of_the_whole_maps():
    """In parts of a few heads and without keeping maps; gradients as well."""
    torch.manual_seed(0)
    unet = image_unet(attention_head_dim=8, block_out_channels=(64, 64, 64, 64))
    moving, frames = MovingUNet(unet), 3
    assert (
        len(moving.decoder_attention) == 6
        and moving.decoder_attention[0] is unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    )
    attention = moving.decoder_attention[-1]
    hidden = torch.randn(2 * frames, 144, 64, requires_grad=True)
    query, key = (attention.head_to_batch_dim(layer(hidden)) for layer in (attention.to_q, attention.to_k))
    maps = attention.get_attention_scores(query, key).view(2, frames, 8, 144, 144)
    expected = attention_change(maps)
    found = attention_changes(attention, hidden, frames)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    wanted, gradient = (torch.autograd.grad(value, hidden)[0] for value in (expected, found))
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-8)


def test_the_image_branch_sees_frames_alone():
    """Mapping network on; motion modules and tokens off; the UNet is left as it was."""
    unet = image_unet()
    moving, network = MovingUNet(unet), MotionNetwork(MotionConfig(WIDTHS, 1, max_frames=4))
    noisy, context, times = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 5, 16), torch.tensor([5, 900])
    with torch.no_grad():
        plain = unet(noisy[1, :, 2:3].transpose(0, 1), times[1:], context[1:]).sample
        deepest, changes = [], []
        alone = moving(network, noisy, times, context, still=True, deepest=deepest, changes=changes)
        torch.testing.assert_close(alone[1, :, 2], plain[0], rtol=0, atol=1e-5)
        assert (moving(network, noisy, times, context) - alone).abs().max() > 0.01
    assert deepest[0].shape == (8, 64, 1, 1) and len(changes) == 6
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in unet.modules())


def test_a_start_without_gain_is_the_image_model():
    torch.manual_seed(0)
    unet, network = image_unet(), MotionNetwork(MotionConfig(WIDTHS, 1, max_frames=4))
    start_motion(network, MotionStart())
    moving, noisy = MovingUNet(unet), torch.randn(1, 4, 4, 8, 8)
    with torch.no_grad():
        found = [
            moving(network, noisy, torch.tensor([9]), torch.ones(1, 5, 16), still=still) for still in (True, False)
        ]
    assert torch.equal(*found)


def test_a_run_is_sampled_by_its_image_model_and_motion(models, tmp_path):
    """As any text-to-video run: with motion frames differ from what they are without."""
    run = tmp_path / "run"
    start(recipe_of(models, "run.steps=1", *NO_LOSSES), run, CPU).run()
    sampler = Sampler(run, CPU)
    moved = sampler(["a red circle moves left to right"], steps=2, guidance=2.0, seed=0)
    assert moved.shape == (1, 4, 32, 32, 3) and moved.dtype == torch.uint8
    for weight in sampler.unet.network.parameters():
        weight.zero_()
    assert not torch.equal(sampler(["a red circle moves left to right"], steps=2, guidance=2.0, seed=0), moved)
