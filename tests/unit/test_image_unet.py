"""Stable Diffusion's U-Net in the trainer: names in files, training, export, LoRA, and models to go on from."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from weft.kernels.analysis.content import measured_motion
from weft.kernels.sampling.schedules import add_noise
from weft.model_loaders.checkpoint import MODEL, read
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.image_unet import ImageUNetConfig, diffusers_to_comfy
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import ImageRecipe, override, read_recipe, read_table
from weft.training.data.captions import caption_terms, parse_caption, split_of, with_other_shapes
from weft.training.image_model import open_image_model
from weft.training.image_unet import ImageUNet, component_of, network_of
from weft.training.lora import lora_between
from weft.training.opened import open_networks
from weft.training.settings import InputError, RecipeError
from weft.training.text import caption_tokens
from weft.training.text_to_video_task import TextToVideoTask

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = ImageUNetConfig(8, 32, (1, 1, 2, 2), 1, (1, 2, 4), context_width=96, heads=2)
HIGEN = ROOT / "demo_models" / "higen.safetensors"
OWN_TEXT = 'text_encoder={kind = "captions", width = 96, layers = 1, heads = 2, max_tokens = 20}'
SETTINGS = (
    f"autoencoder.path={HIGEN}",
    f'text_encoder={{kind = "given", path = "{HIGEN}"}}',
    "captions.places=0.0",
    'teacher.path=""',
    "autoencoder.clips=6",
    "network.model_channels=32",
    "run.steps=2",
    "run.batch_size=2",
    "run.validation_clips=2",
)


def recipe_of(*changes: str, name: str = "demo_image") -> ImageRecipe:
    table = read_table(ROOT / "training" / "recipes" / f"{name}.toml")
    override(table, [*SETTINGS, *changes])
    recipe = read_recipe(table, "recipe")
    assert isinstance(recipe, ImageRecipe)
    return recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("image") / "run"
    start(recipe_of(), folder, CPU).run()
    return folder


def drawn(seed: int, config: ImageUNetConfig = SMALL) -> ImageUNet:
    torch.manual_seed(seed)
    return ImageUNet(config).eval().requires_grad_(False)


def inputs(config: ImageUNetConfig = SMALL) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (2, config.in_channels, 3, 8, 8), (2, 20, config.context_width)
    x, text = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, torch.tensor([10, 700]), text


def test_names_are_those_of_released_files():
    tensors = component_of(drawn(0)).tensors
    assert len(tensors) == len(drawn(0).unet.state_dict())
    for name in (
        "input_blocks.0.0.weight",
        "input_blocks.2.0.op.weight",
        "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.7.0.emb_layers.1.bias",
        "middle_block.1.proj_in.weight",
        "middle_block.2.out_layers.3.weight",
        "output_blocks.1.1.conv.weight",
        "output_blocks.3.2.conv.weight",
        "output_blocks.7.0.skip_connection.weight",
        "out.2.bias",
        "time_embed.2.weight",
    ):
        assert name in tensors
    assert not any("resnets" in name or "attentions" in name for name in tensors)


def test_stable_diffusion_itself_has_its_names():
    config = ImageUNetConfig()
    with torch.device("meta"):
        network = ImageUNet(config)
    names = diffusers_to_comfy(config)(network.unet.state_dict())
    assert len(names) == 686  # of the released UNet
    assert sum(tensor.numel() for tensor in names.values()) == 859_520_964
    assert names["output_blocks.2.1.conv.weight"].shape == (1280, 1280, 3, 3)
    assert names["output_blocks.8.2.conv.weight"].shape == (640, 640, 3, 3)
    assert names["input_blocks.3.0.op.weight"].shape == (320, 320, 3, 3)


def test_a_component_gives_the_network_back():
    network, (x, times, text) = drawn(1), inputs()
    again = network_of(component_of(network), "file")
    assert torch.equal(again(x, times, text), network(x, times, text))
    # Frames are seen alone.
    assert torch.allclose(network(x[:, :, 1:2], times, text), network(x, times, text)[:, :, 1:2], atol=1e-5)


def test_tensors_that_do_not_fit_are_named():
    component = component_of(drawn(1))
    del component.tensors["out.2.bias"]
    with pytest.raises(CheckpointError, match=r"file does not fit .*: conv_out.bias \(8,\) is missing"):
        network_of(component, "file")


def test_a_lora_of_full_rank_is_the_whole_difference():
    base, tuned = drawn(1), drawn(2)
    found = lora_between(base, tuned, rank=10_000)
    weights = dict(component_of(base).tensors)
    for name, tensor in weights.items():
        module, _, kind = f"diffusion_model.{name}".rpartition(".")
        if tensor.ndim < 2:
            weights[name] = tensor + found[f"{module}.{'diff_b' if kind == 'bias' else 'diff'}"]
        else:
            up, down = found[f"{module}.lora_up.weight"], found[f"{module}.lora_down.weight"]
            assert found[f"{module}.alpha"] == len(down)
            weights[name] = tensor + (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
    for name, tensor in component_of(tuned).tensors.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)  # rounding of the factors


def test_a_lora_keeps_the_largest_part():
    base, tuned = drawn(1), drawn(1)
    direction = torch.outer(torch.randn(32), torch.randn(96))
    tuned.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight += direction
    found = lora_between(base, tuned, rank=1)
    module = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    up, down = found[f"{module}.lora_up.weight"], found[f"{module}.lora_down.weight"]
    assert up.shape == (32, 1) and down.shape == (1, 96)
    torch.testing.assert_close(up @ down, direction, atol=1e-5, rtol=0)


def test_a_run_is_trained_resumed_exported_and_opened(run, tmp_path):
    resumed = resume(run, CPU)
    assert resumed.step == 2 and resumed.task.facts["dimensions"] == 2
    file = tmp_path / "image.safetensors"
    assert main(["export", str(run), "--out", str(file)]) == 0
    checkpoint = read(file)
    assert checkpoint.component(MODEL).config == recipe_of().network
    assert checkpoint.latent.dimensions == 2 and checkpoint.latent.channels == 8
    trained, exported = open_image_model(run), open_image_model(file)
    assert (exported.scale, exported.shift) == (trained.scale, trained.shift)
    assert exported.schedule == trained.schedule == recipe_of().schedule.noise_schedule()
    for name, tensor in trained.unet.state_dict().items():
        assert torch.equal(exported.unet.state_dict()[name], tensor.half().float())


def test_a_folder_in_diffusers_layout_is_opened(tmp_path):
    network = drawn(3)
    network.unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.5}', encoding="utf-8")
    opened = open_image_model(tmp_path)
    x, times, text = inputs()
    # Where tensors lie in memory decides which kernels run: the last digits may differ.
    own, given = network(x[:, :, :1], times, text)[:, :, 0], opened.unet(x[:, :, 0], times, text).sample
    torch.testing.assert_close(given, own, rtol=1e-5, atol=1e-6)
    assert (opened.scale, opened.shift, opened.schedule.linear_end) == (0.5, 0.0, 0.012)


def test_what_is_no_image_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_image_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds a HiGenUNet, expected an image model"):
        open_image_model(HIGEN)
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match="diffusers cannot open it"):
        open_image_model(tmp_path)


def test_another_style_goes_on_from_a_run_and_becomes_a_lora(run, tmp_path, caplog):
    caplog.set_level("INFO")
    changes = (
        f"initialization.weights={run}",
        f"text_encoder.path={run}",
        "run.ema_decay=0.5",
        "optimization.learning_rate=0.01",
    )
    trainer = start(recipe_of(*changes, name="demo_image_style"), tmp_path / "style", CPU)
    base = open_image_model(run)
    for name, tensor in trainer.task.networks[MODEL].unet.state_dict().items():
        assert torch.equal(tensor, base.unet.state_dict()[name])
    assert (trainer.task.facts["scale"], trainer.task.facts["shift"]) == (base.scale, base.shift)
    assert f"{MODEL}: all" in caplog.text
    trainer.run()
    text = {name: tensor.clone() for name, tensor in trainer.task.networks["text_encoder"].state_dict().items()}
    assert all(torch.equal(text[name], tensor) for name, tensor in base.text_encoder.state_dict().items())
    file = tmp_path / "style.safetensors"
    assert main(["export", str(tmp_path / "style"), "--lora-of", str(run), "--rank", "2", "--out", str(file)]) == 0
    tensors = load_file(file)
    assert tensors["diffusion_model.input_blocks.1.0.in_layers.2.lora_down.weight"].shape == (2, 32, 3, 3)
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith("diff_b"))
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["rank"] == "2"


def test_a_lora_needs_the_same_text_encoder(run, tmp_path, capsys):
    start(recipe_of(OWN_TEXT), tmp_path / "other", CPU).run()
    command = ["export", str(tmp_path / "other"), "--lora-of", str(run), "--out", str(tmp_path / "a.safetensors")]
    assert main(command) == 2
    assert "its text encoder is not that of" in capsys.readouterr().err


def test_a_given_text_encoder_stays_as_it_was(run, tmp_path):
    text = read(HIGEN).component("text_encoder").tensors
    main(["export", str(run), "--out", str(tmp_path / "image.safetensors")])
    kept = read(tmp_path / "image.safetensors").component("text_encoder").tensors
    assert text.keys() == kept.keys()
    assert all(torch.equal(text[name].half(), kept[name].half()) for name in text)


def test_captions_of_pictures_say_where_things_are(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(TextToVideoTask, "losses", lambda task, batch, step: shown.append(batch))
    task = start(recipe_of(OWN_TEXT, "captions.places=0.5"), tmp_path / "run", CPU).task
    vocabulary = task.text_encoder.config.vocabulary
    assert vocabulary == caption_terms(places=True)
    indices = torch.arange(6).repeat(50)
    task.losses(task.batch(indices, torch.zeros_like(indices)), 0)
    latents, _, tokens = shown[0]
    said = [" ".join(vocabulary[token - 3] for token in row if token > 2) for row in tokens.tolist()]
    found = 0
    for index, latent, text in zip(indices.tolist(), latents, said, strict=True):
        clip, frames = task.clips.clip(index), task.train_latents.take([index])[0][0]
        if "moves" in text:
            assert text == clip.spec.caption()
        else:
            found += 1
            # The picture that is described is the picture that is shown.
            frame = next(frame for frame in range(8) if torch.equal(frames[:, frame], latent[:, 0]))
            assert text == task.clips.picture_captions(index)[frame]
    # 300 draws: within four standard deviations of half of them.
    assert 115 < found < 185


def test_pictures_are_tried_with_another_caption_on_the_same_noise(tmp_path):
    settings = ("caption_preference=2", "preference_clips=3", "preference_start=900", "caption_dropout=1")
    changes = (OWN_TEXT, "captions.places=1", *(f"diffusion.{setting}" for setting in settings))
    task, calls = start(recipe_of(*changes), tmp_path / "run", CPU).task, []
    task.unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    losses = task.losses(task.batch(torch.arange(6), torch.zeros(6, dtype=torch.int64)), 0)
    (own, own_times, texts), (other, other_times, others), _ = calls
    assert torch.equal(own, other) and torch.equal(own_times, other_times) and (own_times >= 900).all()
    assert own.shape[:3] == (3, task.recipe.network.in_channels, 1) and not torch.equal(texts, others)
    plain = losses.objectives["denoiser"] - 2 * losses.metrics["preference"]
    torch.testing.assert_close(plain, losses.metrics["loss"], rtol=0.5, atol=0)  # beside the weights of its clips


TEACHER = (OWN_TEXT, f"teacher.path={HIGEN}", 'data.styles=["flat", "shaded"]')


@pytest.mark.parametrize("frames", [1, 8])
def test_a_teacher_says_what_higen_predicts(tmp_path, frames):
    """Of its own scale of latents, at the time with as much noise, with its own numbers of words; clips with cues."""
    task = start(recipe_of(*TEACHER, "captions.places=0.5"), tmp_path / "run", CPU).task
    higen, captions = open_networks(HIGEN), task.train_latents.captions[:3]
    torch.manual_seed(0)
    latents, noise, times = *torch.randn(2, 3, 8, frames, 8, 8), torch.tensor([100, 600, 999])
    tokens = caption_tokens(task.text_encoder.config, captions)
    taught = torch.tensor([True, False, True])
    found = task._teacher.targets(latents, times, noise, tokens, taught, task.facts)
    assert torch.equal(found[1], noise[1])
    own, theirs = (schedule.alphas_cumprod() for schedule in (task.schedule, higen.schedule))
    scale, shift = higen.facts["scale"], higen.facts["shift"]
    for row in (0, 2):
        alpha = own[times[row]]
        number = (theirs.clamp(1e-9).logit() - alpha.logit()).abs().argmin()
        assert abs(theirs[number].sqrt() - alpha.sqrt()) < 2e-3  # neighbouring times are this close
        clean = latents[row : row + 1] / task.facts["scale"] - task.facts["shift"]
        scaled = (clean + shift) * scale
        noisy = add_noise(higen.schedule, scaled, number[None], noise[row : row + 1])
        words = caption_tokens(higen.networks["text_encoder"].config, captions[row : row + 1])
        cues = {}
        if frames > 1:
            cues = {"prior": scaled[:, :, 4], "motion": measured_motion(scaled.transpose(1, 2))}
        with torch.no_grad():
            v = higen.networks[MODEL](noisy, number[None], higen.networks["text_encoder"](words), **cues)
        a = theirs[number]
        predicted = (a.sqrt() * noisy - (1 - a).sqrt() * v) / scale - shift
        wrong = task.facts["scale"] * (predicted - clean) * (alpha / (1 - alpha)).sqrt()
        # Rounding of float32, behind a division by sqrt(a) = 0.07 at the last time.
        torch.testing.assert_close(found[row], (noise[row] - wrong[0]).float(), rtol=0, atol=2e-3)


def test_a_teacher_stands_in_for_the_noise_of_pictures_that_it_knows(tmp_path):
    """Of the styles that it knows, with captions of clips; asked about other shapes of training captions alone."""
    changes = ("teacher.other_captions=1", "teacher.weight=2", "captions.places=0.5", "diffusion.caption_dropout=0")
    task = start(recipe_of(*TEACHER, *changes), tmp_path / "run", CPU).task
    seen = {}

    def targets(latents, times, noise, tokens, taught, facts):
        seen.update(tokens=tokens, taught=taught)
        return torch.zeros_like(noise)

    task._teacher.targets = targets
    task._predict = lambda network, noisy, times, context: torch.where(
        seen["taught"].view(-1, 1, 1, 1, 1), torch.ones_like(noisy), torch.zeros_like(noisy)
    ).requires_grad_()
    indices = torch.arange(6).repeat(20)
    losses = task.losses(task.batch(indices, torch.zeros_like(indices)), 0)
    assert losses.metrics["taught"].item() == 1
    assert losses.metrics["loss"].item() == pytest.approx(seen["taught"].float().mean().item())
    vocabulary, shares = task.text_encoder.config.vocabulary, []
    for index, row, taught in zip(indices.tolist(), seen["tokens"].tolist(), seen["taught"].tolist(), strict=True):
        clip, text = task.clips.clip(index), " ".join(vocabulary[token - 3] for token in row if token > 2)
        moves = "moves" in text
        assert taught == (moves and clip.style == "flat")
        if moves:
            others = with_other_shapes(clip.spec.caption())
            assert text in (others or [clip.spec.caption()]) if taught else text == clip.spec.caption()
            assert split_of(parse_caption(text)) == "train"
            shares.append(taught)
    assert any(shares) and not all(shares)
    assert task._teacher.weights(torch.tensor([True, False])).tolist() == [2, 1]


def test_what_is_no_teacher(tmp_path):
    with pytest.raises(RecipeError, match="teacher.path: .*lvdm.safetensors holds .* expected a HiGenUNet and its"):
        start(recipe_of(OWN_TEXT, f"teacher.path={HIGEN.with_name('lvdm.safetensors')}"), tmp_path / "a", CPU)
    longer = OWN_TEXT.replace("max_tokens = 20", "max_tokens = 24")
    with pytest.raises(RecipeError, match="reads 20 tokens, the recipe's text encoder 24"):
        start(recipe_of(longer, f"teacher.path={HIGEN}"), tmp_path / "b", CPU)
    with pytest.raises(RecipeError, match="teacher.path: found it with data of kind 'folder', expected moving_shapes"):
        recipe_of('data={kind = "folder", path = "clips", size = 64, frames = 8}', f"teacher.path={HIGEN}")


def test_places_need_words_for_them(tmp_path):
    with pytest.raises(RecipeError, match="captions.places: the given text encoder has no words for places"):
        start(recipe_of("captions.places=0.5"), tmp_path / "run", CPU)
    with pytest.raises(RecipeError, match="captions.places: found 0.5 with data of kind 'folder', expected moving"):
        recipe_of('data={kind = "folder", path = "clips", size = 64, frames = 8}', "captions.places=0.5")


def test_text_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="network.context_width: found 24, the text encoder has 96"):
        start(recipe_of("network.context_width=24"), tmp_path / "run", CPU)
    with pytest.raises(RecipeError, match="network.context_width: found 24, the text encoder has 96"):
        recipe_of("network.context_width=24", OWN_TEXT)
    with pytest.raises(InputError, match="nothing: does not exist, expected a run folder, checkpoint or bundle"):
        start(recipe_of("text_encoder.path=nothing"), tmp_path / "run", CPU)
    start(recipe_of(), tmp_path / "image", CPU).run(max_steps=1)
    main(["export", str(tmp_path / "image"), "--out", str(tmp_path / "image.safetensors")])
    tensors = load_file(tmp_path / "image.safetensors")
    with safe_open(tmp_path / "image.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(
        {name: x for name, x in tensors.items() if not name.startswith("text_encoder.")},
        tmp_path / "mute.safetensors",
        metadata,
    )
    with pytest.raises(
        RecipeError, match="text_encoder.path: .*mute.safetensors holds no text encoder, expected a cap"
    ):
        start(recipe_of(f"text_encoder.path={tmp_path / 'mute.safetensors'}"), tmp_path / "run", CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network.model_channels=48", "network: width: found 48, expected a multiple of 32"),
        ("network.heads=5", "network: width: found 32, expected a multiple of 5"),
        ("network.attention_factors=[1, 3]", "network.attention_factors: found 3, expected the factors of 4 levels"),
        ('data.styles=["flat", "oil"]', "data: styles: found .*'oil'.*, expected at least one of flat, shaded"),
        ("data.styles=[]", "data: styles: found .*, expected at least one of flat"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(change)


def test_weights_that_do_not_fit_are_refused(run, tmp_path):
    def begin(*changes: str) -> None:
        start(recipe_of(*changes), tmp_path / "run", CPU)

    with pytest.raises(RecipeError, match="initialization.weights: .*none: does not exist"):
        begin(f"initialization.weights={tmp_path / 'none'}")
    with pytest.raises(RecipeError, match=r"the diffusion_model in .* has channel_mult .*, the recipe has"):
        begin(f"initialization.weights={run}", "network.channel_mult=[1, 1, 1, 2]")
    with pytest.raises(RecipeError, match="is a HiGenUNet, expected a ImageUNet"):
        begin(f"initialization.weights={HIGEN}")
    partial = tmp_path / "partial.safetensors"
    main(["export", str(run), "--out", str(partial)])
    kept = {name: tensor for name, tensor in load_file(partial).items() if not name.startswith("text_encoder.")}
    with safe_open(partial, "pt") as file:
        save_file(kept, partial, file.metadata())
    with pytest.raises(RecipeError, match="holds diffusion_model, vae, expected a text_encoder as well"):
        begin(f"initialization.weights={partial}")
