"""Training Show-1's stages: what each is given, what gets gradients, exact resume, the exported file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.kernels.networks.higen import SpaceTimeUNet
from weft.kernels.networks.show1 import PixelUNet
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.cascade import interpolate, super_resolve
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import MODEL, Component, LatentSpec, read
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import Show1Recipe, override, read_recipe, read_table
from weft.training.data.clips import open_clips
from weft.training.export import DENOISERS, Trained
from weft.training.sections import MovingShapesData
from weft.training.settings import RecipeError
from weft.training.show1_task import interpolation_cues, shrunk, super_resolution_cues, windows
from weft.training.text import EncodedTexts, FrozenT5
from weft.training.text_settings import T5Text
from weft.training.text_to_video_task import p2_weights

TINY = Path(__file__).parents[1] / "data" / "training"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
CPU = torch.device("cpu")
STAGES = {
    "base": (),
    "interpolation": ("stage=interpolation", "network.in_channels=7", "data.frames=9"),
    "sr1": (
        "stage=sr1",
        "network.in_channels=6",
        "network.noise_levels=1000",
        "network.residual_divisor=1.4142271248762552",
        "schedule.prediction=velocity",
        "conditioning.highest_level=999",
        "data.frames=5",
    ),
}


def recipe_of(stage: str, *changes: str) -> Show1Recipe:
    table = read_table(TINY / "show1.toml")
    override(table, [*STAGES[stage], *changes])
    recipe = read_recipe(table, "show1.toml")
    assert isinstance(recipe, Show1Recipe)
    return recipe


def batch_of(task, epoch: int = 0):
    return task.batch(torch.arange(4), torch.full((4,), epoch))


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for part, value in items for key, leaf in tensors_of(value, f"{name}.{part}").items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_resumes_exactly_and_is_read_back(stage, tmp_path):
    trainer = start(recipe_of(stage), tmp_path / "straight", CPU)
    trainer.run()
    start(recipe_of(stage), tmp_path / "resumed", CPU).run(max_steps=1)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    for part in ("networks", "ema", "optimizers", "random"):
        straight, resumed = (tensors_of(state[part]) for state in states)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), part

    out = tmp_path / f"{stage}.safetensors"
    assert main(["export", str(tmp_path / "straight"), "--out", str(out)]) == 0
    checkpoint = read(out)
    assert checkpoint.family == "show1" and checkpoint.latent.pixels
    prediction = "velocity" if stage == "sr1" else "noise"
    wanted = NoiseSchedule(0.00085, 0.012, spacing="cosine", prediction=prediction, eta=0.0)
    assert checkpoint.schedule == wanted
    network, averaged = checkpoint.component(MODEL).build(), trainer.ema.networks[MODEL]
    assert isinstance(network, PixelUNet) and network.config == averaged.config and network.config.stage == stage
    found = network.state_dict()
    assert all(torch.equal(found[name], value.half().float()) for name, value in averaged.state_dict().items())
    assert set(checkpoint.components) == {MODEL, "text_encoder"}


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_finite_and_reach_all_but_the_variance(stage, tmp_path):
    """From weights of which none is zero, as zeros hide what stands before them."""
    task = start(recipe_of(stage), tmp_path, CPU).task
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in task.unet.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    task.losses(batch_of(task), 0).objectives["denoiser"].backward()
    for name, weight in task.unet.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any(), name
    for weight in task.unet.conv_out.parameters():
        assert weight.grad[:3].any() and not weight.grad[3:].any()


def test_keyframes_are_every_fourth_frame_of_what_the_later_stages_see():
    """Clips of as many frames show the same movement, at another frame rate."""
    keyframes, all_frames = (
        open_clips(MovingShapesData(size=16, frames=frames, two_objects=0.0), "train") for frames in (3, 9)
    )
    for index in range(4):
        assert np.array_equal(keyframes.load(index)[0], all_frames.load(index)[0][::4])


def test_windows_lie_between_keyframes_or_anywhere():
    assert windows("base", 8) == (8, [0])
    assert windows("interpolation", 29) == (5, [0, 4, 8, 12, 16, 20, 24])
    assert windows("sr1", 29) == (8, list(range(22)))
    assert windows("sr1", 4) == (4, [0])


def test_windows_change_with_the_epoch_and_nothing_else(tmp_path):
    task = start(recipe_of("interpolation"), tmp_path, CPU).task
    first, again, later = batch_of(task), batch_of(task), batch_of(task, epoch=1)
    assert first[0].shape == (4, 3, 5, 16, 16) and first[0].dtype == torch.uint8
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], later[0])
    assert all(torch.equal(batch[2], first[2]) for batch in (again, later))


def test_frames_are_shrunk_by_means(tmp_path):
    task = start(recipe_of("base", "data.size=32", "pixels.shrink=2"), tmp_path, CPU).task
    frames, video = batch_of(task)[0], torch.from_numpy(task.clips.load(0)[0])
    assert frames.shape == (4, 3, 3, 16, 16)
    mean = video[1, 4:6, 6:8].float().mean(dim=(0, 1)).round()
    assert torch.equal(frames[0, :, 1, 2, 3].float(), mean)


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("level", [None, 300])
def test_interpolation_is_given_what_sampling_gives_it(blend, level):
    window, noise = torch.randn(2, 3, 5, 4, 4), torch.randn(2, 3, 2, 4, 4)
    keyframes, seen = window[:, :, [0, 4]], []

    def sample(start, given, mask):
        seen.append(torch.cat([given, mask], dim=1))
        return start

    augmentation = None if level is None else noise
    interpolate(keyframes, window, sample, blend=blend, level=level or 0, augmentation=augmentation)
    found = interpolation_cues(window, blend, torch.full((2,), level or 0), augmentation)
    assert torch.equal(found["given"], seen[0])


@pytest.mark.parametrize("carried", [True, False])
def test_super_resolution_is_given_what_sampling_gives_it(carried):
    window, noise, seen = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8), []

    def sample(start, given):
        seen.append(given)
        return start

    first = window[:, :, 0] if carried else None
    super_resolve(shrunk(window, 4), noise, noise, sample, level=250, first=first)
    found = super_resolution_cues(window, torch.full((2,), 250), noise, torch.full((2,), carried))
    assert torch.equal(found["given"], seen[0])
    assert found["noise_level"].tolist() == [250, 250]


def test_levels_and_carried_frames_are_drawn_for_each_clip(tmp_path):
    task = start(recipe_of("sr1"), tmp_path, CPU).task
    clean = torch.rand(32, 3, 3, 16, 16)
    cues = task._cues(clean, 0)
    assert cues["noise_level"].unique().numel() > 8 and cues["noise_level"].max() <= 999
    kept = (cues["given"][:, :, 0] == clean[:, :, 0]).flatten(1).all(dim=1)
    assert 4 < kept.sum() < 28
    state = torch.get_rng_state()
    measured = [task._cues(clean, None)["given"] for _ in range(2)]
    assert torch.equal(*measured) and torch.equal(state, torch.get_rng_state())


def test_interpolation_starts_as_the_keyframes_network(tmp_path):
    keyframes = tmp_path / "keyframes"
    start(recipe_of("base"), keyframes, CPU).run()
    out = tmp_path / "keyframes.safetensors"
    assert main(["export", str(keyframes), "--out", str(out)]) == 0
    given = Trained(keyframes).networks[MODEL]
    for number, source in enumerate((keyframes, out)):
        task = start(recipe_of("interpolation", f"initialization.weights={source}"), tmp_path / str(number), CPU).task
        new = task.unet.conv_in.weight
        assert new.shape[1] == 7 and not new[:, 3:].any()
        noisy, times, text = torch.randn(2, 3, 5, 16, 16), torch.tensor([7, 900]), torch.randn(2, 6, 16)
        with torch.no_grad():
            found = task.unet(torch.cat([noisy, torch.zeros(2, 4, 5, 16, 16)], dim=1), times, text)
            torch.testing.assert_close(found, given(noisy, times, text), rtol=0, atol=2e-3 if number else 1e-6)
    with pytest.raises(RecipeError, match="has noise_levels 0, the recipe has 1000"):
        start(recipe_of("sr1", f"initialization.weights={keyframes}"), tmp_path / "sr1", CPU)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("base", "stage=sr2", "stage: found 'sr2', expected one of 'base', 'interpolation', 'sr1'"),
        (
            "base",
            "stage=interpolation",
            "network: found in_channels = 3, .* the stage 'interpolation' has 7, 0 and true",
        ),
        ("base", "network.temporal=false", "temporal = false, the stage 'base' has 3, 0 and true"),
        ("sr1", "network.noise_levels=0", "the stage 'sr1' has 6, more than 0 and true"),
        ("sr1", "network.noise_levels=10", "highest_level: found 999, expected less than network.noise_levels = 10"),
        ("base", "conditioning.highest_level=5", "found 5, expected 0: keyframes are given nothing"),
        ("base", "network.out_channels=4", "network.out_channels: found 4, expected 3, or 6 with a variance"),
        (
            "base",
            "network.num_res_blocks=[1]",
            r"network.num_res_blocks: found \[1\], expected at least 1 for each of 2",
        ),
        ("base", "network.head_width=3", r"network: width: found 16, expected a multiple of 3 \(network.head_width\)"),
        ("base", "network.temporal_heads=3", "network: width: found 16, expected a multiple of 3 .*temporal_heads"),
        ("base", "network.pooling_heads=3", "network.text_width: found 16, expected a multiple of 3"),
        ("base", "network.text_width=32", "network.text_width: found 32, the text encoder has 16"),
        ("base", "pixels.shrink=3", r"data.size: found 16, expected a multiple of 3 \(pixels.shrink\)"),
        ("base", "data.size=17", "data.size / pixels.shrink: found 17, expected a multiple of 2"),
        ("sr1", "data.size=18", "data.size / pixels.shrink: found 18, expected a multiple of 4"),
        ("interpolation", "data.frames=4", "data.frames: found 4, expected at least 5"),
        ("base", "data.frames=1", "data.frames: found 1, expected at least 2"),
        ("base", "diffusion.last_time=1001", "diffusion.last_time: found 1001, expected at most the schedule's 1000"),
        ("base", "diffusion.last_time=99", "diffusion.last_time: found 99, expected at least 100"),
        (
            "base",
            "text_encoder.kind=clip",
            "text_encoder.kind: found 'clip', expected one of 'captions', 'given', 't5'",
        ),
    ],
)
def test_impossible_recipes_are_refused(stage, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(stage, change)


def test_an_expert_knows_the_last_steps_alone(tmp_path):
    """Times of the training, and of the validation; weights have mean 1 over those."""
    task = start(recipe_of("base", "diffusion.last_time=900"), tmp_path, CPU).task
    torch.manual_seed(0)
    times, *_ = task._draw(torch.zeros(4000, 3, 1, 1, 1), task.tokens[:1].expand(4000, -1))
    assert times.min() < 10 and 890 < times.max() < 900
    seen = []
    task._loss = lambda networks, latents, tokens, times, noise, **cues: seen.append(int(times[0])) or torch.zeros(1)
    task.validate(task.networks)
    assert seen == list(range(50, 900, 100))
    schedule = NoiseSchedule()
    assert torch.equal(p2_weights(schedule, 1.0, 0.5), p2_weights(schedule, 1.0, 0.5, 1000))
    weights = p2_weights(schedule, 1.0, 0.5, 900)
    assert len(weights) == 900 and weights.mean() == pytest.approx(1)
    with pytest.raises(RecipeError, match="preference_start: found 880, expected less than diffusion.last_time = 800"):
        recipe_of("base", "diffusion.last_time=800", "diffusion.caption_preference=1")


RELEASED = {
    "show1_keyframes": 1_726_848_390,
    "show1_interpolation": 1_726_859_910,
    "show1_super_resolution": 796_343_046,
    "show1_expert": 1_411_233_860,
}


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_have_the_released_sizes_and_small_demos(name):
    """Parameters as of the released files; at most three million in an embedded network."""
    for prefix, most in (("", RELEASED[name]), ("demo_", 3_100_000)):
        recipe = read_recipe(read_table(RECIPES / f"{prefix}{name}.toml"), name)
        network, _ = DENOISERS[type(recipe)]
        count = sum(weight.numel() for weight in Component(network, recipe.network, {}).blank().parameters())
        assert count <= most and (prefix or count == most)


def test_an_expert_trains_on_latents_and_is_read_back(tmp_path):
    """ModelScopeT2V's UNet on latents of single frames."""
    sizes = VideoAutoencoderConfig(4, (1, 4, 4), z_channels=4, embed_dim=4, norm_groups=4, framewise=True)
    torch.manual_seed(0)
    vae, latent = {"vae": VideoAutoencoder(sizes)}, LatentSpec(4, 4, 1)
    save_bundle(tmp_path / "vae.safetensors", vae, system="x", latent=latent, schedule=NoiseSchedule(), metadata={})
    table = read_table(TINY / "show1.toml")
    del table["stage"], table["pixels"]
    table["task"] = "expert"
    table["autoencoder"] = {"kind": "video", "path": str(tmp_path / "vae.safetensors"), "clips": 8}
    table["network"] = {"model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_factors": [2],
                        "head_width": 8, "stem_heads": 2, "context_width": 16, "norm_groups": 4}  # fmt: skip
    override(table, ["schedule.spacing=roots", "diffusion.last_time=900"])
    trainer = start(read_recipe(table, "expert.toml"), tmp_path / "straight", CPU)
    trainer.run()
    start(read_recipe(table, "expert.toml"), tmp_path / "resumed", CPU).run(max_steps=1)
    again = resume(tmp_path / "resumed", CPU)
    again.run()
    averaged, resumed = trainer.ema.networks[MODEL].state_dict(), again.ema.networks[MODEL].state_dict()
    assert all(torch.equal(averaged[name], resumed[name]) for name in averaged)
    assert main(["export", str(tmp_path / "straight"), "--out", str(tmp_path / "expert.safetensors")]) == 0
    checkpoint = read(tmp_path / "expert.safetensors")
    network = checkpoint.component(MODEL).build()
    assert isinstance(network, SpaceTimeUNet) and network.config.model_channels == 8
    assert all(torch.equal(network.state_dict()[name], value.half().float()) for name, value in averaged.items())
    assert set(checkpoint.components) == {MODEL, "text_encoder", "vae"} and not checkpoint.latent.pixels


def test_t5_gives_the_states_of_all_tokens_and_masks_padding(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=6, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).eval()
    model.save_pretrained(tmp_path)

    text = FrozenT5(T5Text(path=str(tmp_path)))
    tokens = text.tokens(["  A RED circle ", "", "a " * 90])
    assert tokens.shape == (3, 77) and text.width == 16 and not text.saved
    assert tokens[0, :5].tolist() == [3, 4, 5, 1, 0] and tokens[1, :2].tolist() == [1, 0] and tokens[2, -1] == 1
    assert text.tokens([]).shape == (0, 77)
    with torch.no_grad():
        states, alone = text.network(tokens[:1]), model(input_ids=tokens[:1, :4]).last_hidden_state
    assert states.shape == (1, 77, 16) and states[:, 4:].abs().sum() > 0
    torch.testing.assert_close(states[:, :4], alone, rtol=0, atol=1e-5)
    assert not any(weight.requires_grad for weight in text.network.parameters())
    with pytest.raises(RecipeError, match="text_encoder.path: nowhere is no folder with a T5 encoder"):
        FrozenT5(T5Text(path="nowhere"))


def test_a_wide_clip_trains(tmp_path):
    """From a folder of videos with another height than width."""
    from weft.training.data.moving_shapes import MovingShapesConfig, write_dataset

    write_dataset(tmp_path / "clips", 6, MovingShapesConfig(size=32, frames=3, count=6, seed=1))
    table = read_table(TINY / "show1.toml")
    table["data"] = {"kind": "folder", "path": str(tmp_path / "clips"), "width": 16, "height": 8, "frames": 3}
    table["data"] |= {"held_out": 2}
    task = start(read_recipe(table, "wide.toml"), tmp_path / "run", CPU).task
    assert task.train_latents.take([0, 1])[0].shape == (2, 3, 3, 8, 16)
    assert task.losses(batch_of(task), 0).objectives["denoiser"].isfinite()


class Counting(torch.nn.Module):
    """A text encoder that notes how many captions it is given, and that batches round differently."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tokens):
        self.seen.append(len(tokens))
        return tokens[..., None].float() * 2 + len(tokens) * 1e-3


def test_a_frozen_encoder_reads_each_caption_once():
    encoder, tokens = Counting(), torch.tensor([[1, 2], [3, 4], [1, 2]])
    encoded = EncodedTexts(encoder)
    first, again = encoded(tokens), encoded(tokens.flip(0))
    assert encoder.seen == [1, 1], "one at a time, whatever the batch"
    assert torch.equal(first, again.flip(0)) and torch.equal(first, tokens[..., None] * 2 + 1e-3)
    little = EncodedTexts(Counting(), most=8)
    little(tokens), little(tokens)
    assert little.network.seen == [1] * 3 and little.bytes == 8, "only what fits is kept"


def test_only_frozen_encoders_are_remembered(tmp_path):
    task = start(recipe_of("base"), tmp_path / "trained", CPU).task
    assert task._encoded is None
    start(recipe_of("base"), tmp_path / "trained", CPU).run()
    given = {"kind": "given", "path": str(tmp_path / "trained")}
    table = read_table(TINY / "show1.toml")
    table["text_encoder"] = given
    task = start(read_recipe(table, "given.toml"), tmp_path / "given", CPU).task
    tokens = task.tokens[:3]
    with torch.no_grad():
        plain = task.text_encoder(tokens)
    torch.testing.assert_close(task._encode_text(task.networks, tokens), plain, rtol=0, atol=1e-5)
    assert task._encoded.bytes > 0
