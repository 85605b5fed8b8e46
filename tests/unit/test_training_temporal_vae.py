"""Training the temporal decoder: what gets gradients, the losses, exact resume, the exported file."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from weft.kernels.networks.temporal_vae import TemporalDecoder
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.kernels.sampling.schedules import NoiseSchedule
from weft.model_loaders.bundle import save_bundle
from weft.model_loaders.checkpoint import LatentSpec, read
from weft.training import checkpoints
from weft.training.build import resume, start
from weft.training.cli import main
from weft.training.config import override, read_recipe, read_table
from weft.training.data.clips import to_pixels
from weft.training.discriminator import PatchDiscriminator
from weft.training.metrics import read_rows
from weft.training.settings import RecipeError
from weft.training.temporal_vae_task import consistency, decoder_places

TINY = Path(__file__).parents[1] / "data" / "training"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, Path]:
    """Frame-wise ones of this trainer and of Stable Diffusion's layout, and one that is not frame-wise."""
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.manual_seed(0)
    for name, framewise in (("frames", True), ("clips", False)):
        config = VideoAutoencoderConfig(8, (1, 4, 4), norm_groups=4, framewise=framewise)
        parts = {"vae": VideoAutoencoder(config)}
        latent = LatentSpec(4, 4)
        save_bundle(
            folder / f"{name}.safetensors", parts, system="x", latent=latent, schedule=NoiseSchedule(), metadata={}
        )
    AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder / "image")
    return {"frames": folder / "frames.safetensors", "clips": folder / "clips.safetensors", "image": folder / "image"}


def recipe_of(path: Path, *changes: str):
    table = read_table(TINY / "temporal_vae.toml")
    override(table, [f"autoencoder.path={path}", *changes])
    return read_recipe(table, "temporal_vae.toml")


IMAGE = ("autoencoder.kind=image", "loss.consistency_weight=1e-4")


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for part, value in items for key, leaf in tensors_of(value, f"{name}.{part}").items()}


@pytest.mark.parametrize("kind", ["frames", "image"])
def test_it_trains_resumes_exactly_and_is_read_back(kind, autoencoders, tmp_path):
    more = IMAGE if kind == "image" else ()
    recipe = recipe_of(autoencoders[kind], *more)
    trainer = start(recipe, tmp_path / "straight", CPU)
    trainer.run()
    start(recipe, tmp_path / "resumed", CPU).run(max_steps=7)
    torch.rand(3)
    resume(tmp_path / "resumed", CPU).run()
    states = [checkpoints.read(checkpoints.newest(tmp_path / name)) for name in ("straight", "resumed")]
    assert states[0]["step"] == 20
    for part in ("networks", "ema", "optimizers", "random"):
        straight, resumed = (tensors_of(state[part]) for state in states)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), part
    rows = read_rows(tmp_path / "straight" / "metrics.jsonl")
    assert {"validation_psnr", "validation_psnr_gain", "validation_psnr_of_changes_gain"} <= rows[-1].keys()
    trained = [row for row in rows if "loss" in row]
    assert ("consistency" in trained[0]) == (kind == "image")
    assert "discriminator" not in trained[0] and trained[1]["discriminator"] > 0

    out = tmp_path / "tcm.safetensors"
    assert main(["export", str(tmp_path / "straight"), "--out", str(out)]) == 0
    checkpoint = read(out)
    assert checkpoint.metadata["autoencoder"] == autoencoders[kind].name
    network, averaged = checkpoint.component("temporal_vae").build(), trainer.ema.networks["temporal_vae"]
    assert network.config == averaged.config
    found = network.state_dict()
    assert all(torch.equal(found[name].float(), x.half().float()) for name, x in averaged.state_dict().items())


@pytest.mark.parametrize("kind", ["frames", "image"])
def test_gradients_reach_what_is_added_and_nothing_else(kind, autoencoders, tmp_path):
    task = start(recipe_of(autoencoders[kind], *(IMAGE if kind == "image" else ())), tmp_path, CPU).task
    before = {name: tensor.clone() for name, tensor in task.autoencoder.state_dict().items()}
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in task.temporal.parameters():  # zeros would hide what stands before them
            weight.add_(0.05 * torch.randn_like(weight))
    losses = task.losses(task.batch(torch.arange(2), torch.zeros(2, dtype=torch.long)), 5)
    parameters = task.parameters()
    assert losses.objectives.keys() == parameters.keys() == {"temporal_vae", "discriminator"}
    losses.objectives["discriminator"].backward(inputs=parameters["discriminator"])
    assert all(weight.grad is None for weight in task.temporal.parameters())
    for weight in task.discriminator.parameters():
        weight.grad = None
    losses.objectives["temporal_vae"].backward()
    for name, weight in task.temporal.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name
    assert all(weight.grad is None for weight in task.autoencoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.autoencoder.state_dict().items())
    assert not any(module._forward_hooks for module in task.autoencoder.modules())


def test_losses_are_those_of_the_paper(autoencoders, tmp_path):
    """On Stable Diffusion's layout, against the modules by hand."""
    task = start(recipe_of(autoencoders["image"], *IMAGE, "loss.consistency_weight=0.5"), tmp_path, CPU).task
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in task.temporal.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    batch = task.batch(torch.arange(2), torch.zeros(2, dtype=torch.long))
    metrics = task.losses(batch, 0).metrics
    video, network = to_pixels(batch[0]), task.autoencoder.network
    rows = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        encoder, decoder = network.encoder, network.decoder
        wide = encoder.conv_in(rows)
        first = encoder.down_blocks[0].resnets[0](wide, None)
        second = encoder.down_blocks[1].resnets[0](encoder.down_blocks[0].downsamplers[0](first), None)
        h = decoder.mid_block(decoder.conv_in(network.post_quant_conv(network.encode(rows).latent_dist.mean)))
        for resnet in decoder.up_blocks[0].resnets:
            h = resnet(h, None)
        deep = task.temporal.compensate(h, 2, 4)
        h = decoder.up_blocks[0].upsamplers[0](deep)
        for resnet in decoder.up_blocks[1].resnets:
            h = resnet(h, None)
        shallow = task.temporal.compensate(h, 1, 4)
        images = task.temporal.refine(decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(shallow))))
    expected = (first - shallow).square().mean() + (second - deep).square().mean()
    # Float32, the same layers in the same order but for the memory format.
    torch.testing.assert_close(metrics["consistency"], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(metrics["l1"], (rows - images).abs().mean(), rtol=1e-4, atol=0)
    perceptual = task.perceptual(rows, images).mean()
    total = metrics["l1"] + 0.3 * perceptual + 0.5 * metrics["consistency"]
    torch.testing.assert_close(metrics["loss"], total, rtol=1e-4, atol=0)


def test_consistency_pairs_levels():
    shallow, deep = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
    assert consistency([shallow, deep], [deep, shallow]) == 0
    assert torch.isclose(consistency([shallow, deep], [deep + 1, shallow + 2]), torch.tensor(5.0))


def test_the_discriminator_sees_clips():
    """Patches of clips: each logit sees its neighbours in time, as far as three frames by three frames reach."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator((4, 8), over_time=True).eval()
    clip = torch.randn(1, 3, 9, 16, 16)
    logits = discriminator(clip)
    assert logits.shape == (1, 1, 9, 6, 6)
    changed = clip.clone()
    changed[:, :, 4] += 1
    seen = (discriminator(changed) - logits).abs().amax((0, 1, 3, 4)) > 0
    assert seen.tolist() == [False, True, True, True, True, True, True, True, False]


def test_it_learns_what_frames_share(autoencoders, tmp_path):
    """Clips that stand still, seen through noise on each latent: the gain over the image decoder grows."""
    task = start(recipe_of(autoencoders["frames"], "loss.adversarial_weight=0"), tmp_path, CPU).task
    decoder = TemporalDecoder(task.temporal, task.autoencoder.decode_frames, decoder_places(task.autoencoder))
    torch.manual_seed(0)
    still = torch.randn(1, 4, 1, 4, 4).expand(-1, -1, 6, -1, -1)
    with torch.no_grad():
        target = decoder(still)
    optimizer = torch.optim.Adam(task.temporal.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        loss = (decoder(still + 0.3 * torch.randn_like(still)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss))
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("clips", (), r"autoencoder\.path: found a 3D autoencoder, expected one of single frames"),
        (
            "frames",
            ("loss.consistency_weight=1e-4",),
            r"loss\.consistency_weight: found 0\.0001 with an autoencoder of",
        ),
        ("frames", ("data.size=18",), r"data\.size: found 18, the autoencoder takes multiples of 4"),
        ("frames", ("data.size=17",), r"data\.size: found 17, expected a multiple of 2 \(what refinement\.mult halves"),
        ("frames", ("data.frames=1",), r"data\.frames: found 1, expected at least 2"),
        ("frames", ("refinement.mult=[]",), r"refinement\.mult: found none"),
        (
            "frames",
            ("loss.discriminator_channels=[1, 2, 3, 4, 5, 6]",),
            r"discriminator_channels: 6 widths leave no pa",
        ),
    ],
)
def test_bad_recipes(kind, changes, message, autoencoders, tmp_path):
    with pytest.raises(RecipeError, match=message):
        start(recipe_of(autoencoders[kind], *changes), tmp_path / "run", CPU)
