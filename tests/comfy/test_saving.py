"""What the stock save nodes write comes back as it was, and incomplete files of stock parts are refused."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def cubic(comfy):
    """A VAE whose factors and norms no shape tells: (4, 4, 4), four groups."""
    from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.checkpoint import LatentSpec

    torch.manual_seed(3)
    with torch.inference_mode(False):
        network = VideoAutoencoder(VideoAutoencoderConfig(n_hiddens=8, downsample=(4, 4, 4), norm_groups=4))
        folder = comfy.base / "models" / "vae"
        folder.mkdir(exist_ok=True)
        facts = {"latent": LatentSpec(4, 4, 4), "schedule": NoiseSchedule(), "metadata": {}}
        save_bundle(folder / "cubic.safetensors", {"vae": network}, system="lvdm", **facts)
    return comfy.run("WeftLoadVAE", vae_name="cubic.safetensors")[0]


@pytest.fixture
def latent():
    return {"samples": torch.randn(1, 4, 2, 4, 4, generator=torch.manual_seed(0))}


def test_saved_model_loads_again(comfy, toy, sample):
    before = sample()
    comfy.run("ModelSave", model=toy.model, filename_prefix="saved_model")
    name = comfy.saved("diffusion_models", "saved_model")
    again = comfy.run("WeftLoadDiffusionModel", model_name=name)[0]
    assert torch.equal(sample(again), before)


def test_saved_checkpoint_loads_again(comfy, toy, sample):
    before = sample()
    comfy.run("CheckpointSave", model=toy.model, clip=toy.clip, vae=toy.vae, filename_prefix="saved_checkpoint")
    name = comfy.saved("checkpoints", "saved_checkpoint")
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint=name)
    positive, negative = (comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", ""))
    latent = sample(model, positive=positive, negative=negative)
    assert torch.equal(latent, before)
    images = [comfy.run("VAEDecode", samples={"samples": latent}, vae=found)[0] for found in (vae, toy.vae)]
    assert torch.equal(*images)


def test_saved_vae_loads_again(comfy, cubic, latent):
    comfy.run("VAESave", vae=cubic, filename_prefix="saved_vae")
    again = comfy.run("WeftLoadVAE", vae_name=comfy.saved("vae", "saved_vae"))[0]
    images = [comfy.run("VAEDecode", samples=latent, vae=vae)[0] for vae in (cubic, again)]
    assert images[0].shape == (8, 16, 16, 3) and torch.equal(*images)


def test_a_checkpoint_with_another_vae_keeps_that_vae(comfy, toy, cubic, latent):
    comfy.run("CheckpointSave", model=toy.model, clip=toy.clip, vae=cubic, filename_prefix="saved_mixed")
    again = comfy.run("WeftLoadCheckpoint", checkpoint=comfy.saved("checkpoints", "saved_mixed"))[2]
    assert torch.equal(*(comfy.run("VAEDecode", samples=latent, vae=vae)[0] for vae in (cubic, again)))


def test_a_checkpoint_can_get_another_scaling(comfy):
    model = comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors", scaling="taichi")[0]
    spec = model.get_model_object("latent_format").spec
    assert (spec.scale, spec.shift) == (0.175733933, 0.03291025)


def test_a_bundle_says_that_it_has_no_averaged_weights(comfy):
    with pytest.raises(Exception, match="toy.safetensors has no averaged .EMA. weights .* choose the training weights"):
        comfy.run("WeftLoadCheckpoint", checkpoint="toy.safetensors", weights="averaged")


# Checkpoints with ComfyUI's own text encoder and VAE


@pytest.fixture(scope="module")
def released_tensors():
    """A tiny text-to-video network beside CLIP-L and Stable Diffusion's VAE at full size, in the released layout."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from weft.benchmarks.peers.lvdm import UNet
    from weft.kernels.networks.lvdm import TextToVideoUNetConfig

    sizes = {"ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "z_channels": 4, "in_channels": 3, "resolution": 256}
    sizes |= {"ch": 128, "out_ch": 3, "attn_resolutions": (), "double_z": True, "dropout": 0.0}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    unet = TextToVideoUNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(1,),
        num_heads=4,
        context_width=768,
    )
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        parts = {
            "model.diffusion_model.": UNet(unet),
            "first_stage_model.": AutoencoderKL(ddconfig=sizes, embed_dim=4),
            "cond_stage_model.transformer.": CLIPTextModel(CLIPTextConfig(**clip)),
        }
        for weight in parts["first_stage_model."].parameters():  # ComfyUI's layers are not drawn
            weight.normal_(std=weight[0].numel() ** -0.5) if weight.ndim > 1 else weight.fill_(0.5)
        return {
            prefix + ("" if "text_model" in name or "cond" not in prefix else "text_model.") + name: tensor.half()
            for prefix, part in parts.items()
            for name, tensor in part.state_dict().items()
        }


@pytest.fixture
def released_file(comfy, released_tensors):
    """Writes the released checkpoint without some of its tensors, or with others; removed after the test."""
    path = comfy.base / "models" / "checkpoints" / "released.safetensors"

    def write(without="", **replaced):
        tensors = {name: tensor for name, tensor in released_tensors.items() if not without or without not in name}
        save_file({**tensors, **replaced}, path)
        return path.name

    yield write
    path.unlink(missing_ok=True)


def encode(comfy, clip):
    return comfy.run("CLIPTextEncode", clip=clip, text="a dog")[0][0]


def test_a_released_checkpoint_is_saved_and_loaded_again(comfy, released_file, latent):
    model, clip, vae = comfy.run("WeftLoadCheckpoint", checkpoint=released_file())
    text, facts = encode(comfy, clip)
    # The file has no projection of the pooled output: it must not be made of what was in memory.
    assert facts["pooled_output"].isfinite().all()
    comfy.run("CheckpointSave", model=model, clip=clip, vae=vae, filename_prefix="saved_released")
    again = comfy.run("WeftLoadCheckpoint", checkpoint=comfy.saved("checkpoints", "saved_released"))
    assert torch.equal(encode(comfy, again[1])[0], text)
    images = [comfy.run("VAEDecode", samples=latent, vae=found)[0] for found in (vae, again[2])]
    assert images[0].shape == (2, 32, 32, 3) and torch.equal(*images)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (
            "first_stage_model.decoder.mid.block_1.conv1.weight",
            r"VAE in released.safetensors does not fit .*decoder\.mid\.block_1\.conv1\.weight .* is missing",
        ),
        ("first_stage_model.decoder.conv_in.weight", "released.safetensors: ComfyUI cannot make a VAE"),
        (
            "text_model.encoder.layers.5.mlp.fc1.weight",
            r"text encoder in released.safetensors does not fit .*layers\.5\.mlp\.fc1\.weight .* is missing",
        ),
        ("text_model.encoder.layers.0.", r"layers\.0\..* is missing"),
    ],
)
def test_an_incomplete_stock_part_is_refused(comfy, released_file, without, message):
    with pytest.raises(Exception, match=message):
        comfy.run("WeftLoadCheckpoint", checkpoint=released_file(without))


def test_a_misshapen_stock_part_is_refused(comfy, released_file):
    key = "cond_stage_model.transformer.text_model.encoder.layers.5.mlp.fc1.weight"
    with pytest.raises(Exception, match=r"released\.safetensors.*layers\.5\.mlp\.fc1\.weight"):
        comfy.run("WeftLoadCheckpoint", checkpoint=released_file(**{key: torch.zeros(8, 768)}))
