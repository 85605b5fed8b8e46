"""Full-size networks against the tensor names and shapes of the released files, without memory for weights."""

import pytest

from weft.kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig, TextToVideoUNet, TextToVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from weft.model_loaders.checkpoint import MODEL, TEXT_ENCODER, VAE, ReadOptions, interpret
from weft.model_loaders.errors import CheckpointError
from weft.model_loaders.keymap import check_tensors

SHORT = LatentVideoUNetConfig()
PREDICTION = LatentVideoUNetConfig(in_channels=5, noise_levels=251)
INTERPOLATION = LatentVideoUNetConfig(in_channels=5, noise_levels=251, temporal_length=5)

SCHEDULE_VECTORS = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
}


def total(component):
    return sum(tensor.numel() for tensor in component.tensors.values())


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("short_uncond", SHORT, 548_904_580),
        ("long_pred", PREDICTION, 549_163_908),
        ("long_interp", INTERPOLATION, 549_181_060),
    ],
)
def test_models_on_the_3d_autoencoder(manifest, name, config, parameters, ema):
    checkpoint = interpret("sky.ckpt", manifest(name), {}, ReadOptions(ema=ema))
    assert set(checkpoint.components) == {MODEL, VAE}
    model, vae = checkpoint.component(MODEL), checkpoint.component(VAE)
    assert (model.network, model.config) == (LatentVideoUNet, config)
    assert (vae.network, vae.config) == (VideoAutoencoder, VideoAutoencoderConfig())
    check_tensors(model.blank(), model.tensors, name)
    check_tensors(vae.blank(), vae.tensors, name)
    assert (total(model), total(vae)) == (parameters, 19_446_759)
    assert (checkpoint.latent.channels, checkpoint.latent.spatial, checkpoint.latent.temporal) == (4, 8, 4)


def test_text_to_video(manifest):
    checkpoint = interpret("model.ckpt", manifest("text2video"), {})
    model = checkpoint.component(MODEL)
    assert (model.network, model.config) == (TextToVideoUNet, TextToVideoUNetConfig())
    check_tensors(model.blank(), model.tensors, "text2video")
    assert total(model) == 958_924_964
    # These two are built by ComfyUI, from the names that its own networks have.
    vae, text = checkpoint.component(VAE), checkpoint.component(TEXT_ENCODER)
    assert vae.network is text.network is None
    assert "decoder.up.3.block.0.conv1.weight" in vae.tensors
    assert "text_model.encoder.layers.11.mlp.fc2.weight" in text.tensors
    positions = text.tensors["text_model.embeddings.position_ids"]
    assert (total(vae), total(text) - positions.numel()) == (83_653_863, 123_060_480)


def test_text_to_video_has_no_averaged_copy(manifest):
    with pytest.raises(CheckpointError, match="model.ckpt has no averaged .* choose the training weights"):
        interpret("model.ckpt", manifest("text2video"), {}, ReadOptions(ema=True))


def test_autoencoder_alone(manifest):
    checkpoint = interpret("ae_sky.ckpt", manifest("video_ae"), {})
    assert set(checkpoint.components) == {VAE}
    vae = checkpoint.component(VAE)
    check_tensors(vae.blank(), vae.tensors, "video_ae")
    assert total(vae) == 19_446_759


@pytest.mark.parametrize("name", ["short_uncond", "long_pred", "long_interp", "text2video", "video_ae"])
def test_only_what_inference_ignores_is_left_out(manifest, name):
    """Whatever reading a file does not look at: take it away, and the components are the same."""
    tensors = manifest(name)
    doubled = {key.replace(".conv.weight", ".weight") for key in tensors if key.endswith(".conv.weight")}
    ignored = {
        key
        for key in tensors
        if key.startswith(("loss.", "model_ema.")) or key in SCHEDULE_VECTORS | doubled - _upsampling(doubled)
    }
    kept = {key: tensor for key, tensor in tensors.items() if key not in ignored}
    whole, rest = (interpret("sky.ckpt", given, {}).components for given in (tensors, kept))
    assert {role: set(part.tensors) for role, part in whole.items()} == {
        role: set(part.tensors) for role, part in rest.items()
    }
    # And nothing else is ignored: without any other key a component loses a tensor, or is not read at all.
    sizes = {role: _elements(part) for role, part in whole.items()}
    assert sum(sizes.values()) == sum(tensor.numel() for tensor in kept.values())


def _upsampling(names):
    """U-Net convolutions called `conv` are no doubles: there is no `x.weight` beside `x.conv.weight`."""
    return {name for name in names if "output_blocks" in name}


def _elements(component):
    return sum(tensor.numel() for tensor in component.tensors.values())
