"""Training a ControlNet: what it starts as, what gets gradients, the hints it is given, resume, the exported file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from weft.kernels.networks.caption_encoder import CaptionEncoder, CaptionEncoderConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.image_unet import ImageUNetConfig, control_to_comfy
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import ControlRecipe, override, read_recipe, read_table
from weft.training.control_net import CONTROL, ControlNet
from weft.training.control_settings import EdgeHints
from weft.training.control_task import PackedEdges, edges_of, unpacked
from weft.training.data.captions import caption_terms
from weft.training.data.clips import stack_videos
from weft.training.image_task import single_frames
from weft.training.image_unet import ImageUNet, build_unet, component_of, config_of
from weft.training.metrics import read_rows
from weft.training.settings import RecipeError

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")
SMALL = ImageUNetConfig(4, 32, (1, 1, 2, 2), 1, (1, 2, 4), context_width=16, heads=2)


def image_model(path: Path, with_text: bool = True, factor: int = 8, config: ImageUNetConfig = SMALL) -> Path:
    """A model file of an image UNet, its autoencoder and its caption encoder, all with random weights."""
    torch.manual_seed(0)
    sizes = VideoAutoencoderConfig(n_hiddens=4, downsample=(1, factor, factor), norm_groups=4, framewise=True)
    parts = {"diffusion_model": component_of(ImageUNet(config)), "vae": VideoAutoencoder(sizes)}
    if with_text:
        parts["text_encoder"] = CaptionEncoder(CaptionEncoderConfig(caption_terms(), 16, 1, 2, 20))
    latent = LatentSpec(scale=0.7, shift=0.1, spatial=factor)
    save_bundle(path, parts, system="image", latent=latent, schedule=NoiseSchedule(0.00085, 0.012), metadata={})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return image_model(tmp_path_factory.mktemp("model") / "image.safetensors")


def recipe_of(model: Path, *changes: str) -> ControlRecipe:
    table = read_table(TINY / "control.toml")
    override(table, [f"image_model.path={model}", f"autoencoder.path={model}", *changes])
    recipe = read_recipe(table, "control.toml")
    assert isinstance(recipe, ControlRecipe)
    return recipe


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_gradients_reach_the_control_net_alone(model, tmp_path):
    trainer = start(recipe_of(model), tmp_path / "run", CPU)
    task = trainer.task
    assert set(task.networks) == {CONTROL} and not task.companions
    assert (task.facts["scale"], task.facts["shift"]) == (0.7, 0.1), "those of the image model"
    frozen = {"unet": task.image_unet, "text": task.text_encoder, "vae": task.autoencoder}
    before = {name: copy_of(part) for name, part in frozen.items()}
    trainer.run()
    task.losses(task.batch(torch.arange(4), torch.zeros(4)), 4).objectives["denoiser"].backward()
    # Zero outputs hide what is before them in the first steps: after four, gradients are everywhere.
    assert all(weight.grad.any() for weight in task.networks[CONTROL].parameters())
    for name, part in frozen.items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
        assert all(weight.grad is None for weight in part.parameters())


def test_it_starts_as_the_encoder_of_the_image_model_without_effect(model, tmp_path):
    trainer = start(recipe_of(model), tmp_path / "run", CPU)
    task, network = trainer.task, trainer.task.networks[CONTROL]
    weights = task.image_unet.state_dict()
    shared = [name for name in network.network.state_dict() if name in weights]
    assert len(shared) > 100
    assert all(torch.equal(network.network.state_dict()[name], weights[name]) for name in shared)
    generator = torch.Generator().manual_seed(0)
    x, context, hints = (torch.randn(s, generator=generator) for s in ((2, 4, 3, 4, 4), (2, 5, 16), (2, 3, 3, 32, 32)))
    times = torch.tensor([10, 900])

    def predicted(hints):
        with torch.no_grad():
            return network(task.image_unet, x, times, context, hints)

    alone = ImageUNet(SMALL)
    alone.unet = task.image_unet
    assert torch.equal(predicted(hints), alone(x, times, context).detach())
    trainer.run()
    found = predicted(hints)
    assert (found - alone(x, times, context)).abs().max() > 1e-4
    # Each frame has its own hint, and its own alone.
    hints[1, 2] = 1 - hints[1, 2]
    changed = (predicted(hints) - found).abs().amax(dim=(1, 3, 4))
    assert changed[1, 2] > 1e-6 and changed.sum() == changed[1, 2]


def test_hints_are_the_edges_of_the_frames(model, tmp_path):
    recipe = recipe_of(model)
    task = start(recipe, tmp_path / "run", CPU).task
    numbers = torch.tensor([3, 0, 7])
    mean, _, _, packed = task.batch(numbers, torch.zeros(3))
    videos, _ = stack_videos(task.clips, numbers.tolist())
    (hints,) = task._cues(mean, 0, packed).values()
    assert hints.shape == (3, 2, 3, 32, 32) and hints.unique().tolist() == [0, 1]
    expected = edges_of(videos.flatten(0, 1).movedim(-1, 1) / 255, recipe.hints).expand(-1, 3, -1, -1)
    assert torch.equal(hints.flatten(0, 1), expected)
    assert not torch.equal(hints[:, 0], hints[:, 1]), "shapes move"


def test_edges_are_packed_without_loss():
    generator = torch.Generator().manual_seed(0)
    videos = torch.randint(256, (2, 3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    settings = EdgeHints(low_threshold=0.1, high_threshold=0.3)
    packed = PackedEdges(settings)(videos)
    assert packed.shape == (2, 3, 32) and packed.max() > 128
    edges = edges_of(videos.flatten(0, 1).movedim(-1, 1) / 255, settings)
    assert torch.equal(unpacked(packed.half(), 16)[:, :, :1].flatten(0, 1), edges)


def test_the_frame_of_a_clip_has_its_own_hint():
    numbers = torch.arange(40.0).view(8, 5)  # of the frames of eight clips
    mean, extra = numbers[:, None, :, None, None].expand(-1, 4, -1, 2, 2), numbers[:, :, None].expand(-1, -1, 6)
    tokens = torch.arange(8)
    one, _, kept, packed = single_frames((mean, mean, tokens, extra))
    assert one.shape == (8, 4, 1, 2, 2) and packed.shape == (8, 1, 6) and torch.equal(kept, tokens)
    assert torch.equal(one[:, 0, :, 0, 0], packed[:, :, 0])
    assert len((one[:, 0, 0, 0, 0] % 5).unique()) > 1, "another place in each clip"


def test_resumed_run_equals_straight_run(model, tmp_path):
    start(recipe_of(model), tmp_path / "straight", CPU).run()
    start(recipe_of(model), tmp_path / "resumed", CPU).run(max_steps=3)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    for part in ("networks", "ema"):
        one, other = (state["ema"]["networks"] if part == "ema" else state[part] for state in states)
        assert one[CONTROL].keys() == other[CONTROL].keys()
        assert all(torch.equal(value, other[CONTROL][name]) for name, value in one[CONTROL].items()), part
    losses = [read_rows(tmp_path / name / "metrics.jsonl")[-1]["validation_loss"] for name in ("straight", "resumed")]
    assert losses[0] == losses[1] > 0


def test_exported_file_is_the_trained_network(model, tmp_path):
    run, out = tmp_path / "run", tmp_path / "control.safetensors"
    trainer = start(recipe_of(model, "run.steps=2"), run, CPU)
    trainer.run()
    assert main(["export", str(run), "--out", str(out)]) == 0
    tensors, averaged = load_file(out), trainer.ema.networks[CONTROL]
    assert tensors.pop("lora_controlnet").numel() == 0
    expected = control_to_comfy(SMALL)(averaged.network.state_dict())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value.half()) for name, value in expected.items())
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (said["system"], said["hint"], said["image_model"]) == ("control", "canny", "image.safetensors")
    assert (said["low_threshold"], said["high_threshold"], said["resolution"]) == ("0.1", "0.2", "32")
    assert said["steps"] == '{"control": 2}' and '"moving_shapes"' in said["dataset"] and said["revision"]
    again = start(recipe_of(model, f"initialization.weights={run}"), tmp_path / "again", CPU).task
    weights = averaged.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.networks[CONTROL].state_dict().items())
    assert main(["export", str(run), str(model), "--out", str(out)]) == 2


def test_names_are_those_of_released_files():
    config = ImageUNetConfig()
    with torch.device("meta"):
        network = ControlNet(config)
    names = control_to_comfy(config)(network.network.state_dict())
    assert len(names) == 340  # of the released ControlNets
    assert sum(tensor.numel() for tensor in names.values()) == 361_279_120
    assert names["input_hint_block.0.weight"].shape == (16, 3, 3, 3)
    assert names["input_hint_block.12.weight"].shape == (256, 96, 3, 3)
    assert names["input_hint_block.14.bias"].shape == (320,)
    assert names["zero_convs.11.0.weight"].shape == (1280, 1280, 1, 1)
    assert names["middle_block_out.0.bias"].shape == (1280,)


def test_sizes_of_an_image_model_are_found():
    assert config_of(build_unet(SMALL), "file") == SMALL
    wide = replace(SMALL, num_res_blocks=2, attention_factors=(2,), heads=4)
    assert config_of(build_unet(wide), "file") == wide


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_head_dim": (1, 1, 2, 2)}, "folder has attention_head_dim .*, expected one number for all levels"),
        ({"use_linear_projection": True}, r"folder does not fit .*proj_in.weight has shape \(32, 32\)"),
        ({"in_channels": 9}, r"folder does not fit .*conv_out.bias has shape \(4,\), expected \(9,\)"),
    ],
)
def test_other_image_models_are_refused(changes, message):
    from diffusers import UNet2DConditionModel

    sizes = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "attention_head_dim": 2}
    unet = UNet2DConditionModel(**{**sizes, "cross_attention_dim": 16, **changes})
    with pytest.raises(CheckpointError, match=message):
        ControlNet.of(unet, "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hints.low_threshold=0.5", "hints.low_threshold: found 0.5, expected at most hints.high_threshold = 0.2"),
        ("hints.high_threshold=1", "hints.high_threshold: found 1.0, expected at most 0.99"),
        ("hints.low_threshold=0", "hints.low_threshold: found 0.0, expected at least 0.01"),
        ("diffusion.caption_preference=1", "caption_preference: found it with single frames"),
        ("text_encoder.kind=captions", "text_encoder.kind: found 'captions', expected one of 'clip', 'image_model'"),
        ("network.heads=2", "network: unknown key"),
    ],
)
def test_impossible_recipes_are_refused(model, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of(model, change)


def test_parts_that_do_not_fit_each_other_are_refused_before_encoding(model, tmp_path, monkeypatch):
    monkeypatch.setattr("weft.training.text_to_video_task.encode_clips", lambda *_: pytest.fail("encoded"))
    text = replace(SMALL, context_width=24)
    for number, (changes, settings, message) in enumerate(
        [
            ({"factor": 4}, (), "autoencoder: has one latent for 4 x 4 pixels, expected 8 x 8: .* ComfyUI scales"),
            ({"config": text}, (), "image_model: reads text of width 24, the text encoder has 16"),
            ({"with_text": False}, (), "has no caption encoder; expected kind = .clip. and its path"),
            ({}, ("schedule.linear_end=0.02",), "schedule.linear_end: found 0.02, expected 0.012: the image model's"),
            ({}, ("data.size=36",), "data.size: found 36, the autoencoder takes multiples of 8"),
        ]
    ):
        other = image_model(tmp_path / f"{number}.safetensors", **changes)
        with pytest.raises(RecipeError, match=message):
            start(recipe_of(other, *settings), tmp_path / str(number), CPU)


def test_a_run_is_no_denoiser(model, tmp_path, capsys):
    start(recipe_of(model, "run.steps=1"), tmp_path / "run", CPU).run()
    assert main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "a run of control, expected text_to_video, versvideo, image, harivo or show1" in capsys.readouterr().err
