"""Show-1's files in ComfyUI: the text of its stages on pixels."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch


@pytest.fixture
def encoder():
    """T5 of the released composition, small."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2, "vocab_size": 32128}
    with torch.inference_mode(False):
        network = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
        for weight in network.parameters():
            weight.data = weight.data.half().float()
    return network


@pytest.fixture
def released(comfyui_folder):
    """Token numbers of a prompt as the release makes them."""
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(comfyui_folder / "comfy" / "text_encoders" / "t5_tokenizer")
    settings = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    return lambda prompt: tokenizer(prompt.lower().strip(), **settings)


def clip_of(comfy, tensors):
    checkpoint = comfy.ours("model_loaders.checkpoint")
    part = checkpoint.Component(None, "t5 xxl", tensors)
    return comfy.ours("model_loaders.bridge.text").make_clip(
        checkpoint.Checkpoint("show-1-base", "show1", {checkpoint.TEXT_ENCODER: part})
    )


PROMPTS = ["A panda  taking a Selfie ", "", "many words " * 60]


@pytest.mark.parametrize("table", ["shared.weight", "encoder.embed_tokens.weight"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "empty", "long"])
def test_text_is_that_of_transformers(comfy, encoder, released, prompt, table, caplog):
    """Raw states of 77 tokens, those of the padding too, which is masked inside the encoder alone."""
    names = {"shared.weight", "encoder.embed_tokens.weight"} - {table}
    tensors = {name: tensor.half() for name, tensor in encoder.state_dict().items() if name not in names}
    tokens = released(prompt)
    expected = encoder(**tokens).last_hidden_state
    found = comfy.run("CLIPTextEncode", clip=clip_of(comfy, tensors), text=prompt)[0][0][0]
    assert found.shape == (1, 77, 32)
    # Weights are the same half-precision numbers; ComfyUI computes in float32 on the CPU.
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-4)
    assert ("its end is left out" in caplog.text) == (len(prompt) > 100)


def stock_clip(encoder, kind):
    """What *Load CLIP* makes of T5-XXL for another model that masks padding, of the small encoder's size."""
    import comfy.text_encoders.genmo
    import comfy.text_encoders.lt
    from comfy import sd, supported_models_base

    parts = {
        "ltxv": (comfy.text_encoders.lt.LTXVT5Tokenizer, comfy.text_encoders.lt.ltxv_te()),
        "mochi": (comfy.text_encoders.genmo.MochiT5Tokenizer, comfy.text_encoders.genmo.mochi_te()),
    }
    sizes = {"vocab_size": 32128, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    options = {"t5xxl_model_config": sizes}
    target = supported_models_base.ClipTarget(*parts[kind])
    return sd.CLIP(target, parameters=1, state_dict=[encoder.state_dict()], model_options=options)


@pytest.mark.parametrize("kind", ["ltxv", "mochi"])
def test_the_stock_loader_gives_the_same_text(comfy, encoder, released, kind):
    """It pads further, which the encoder masks: the network's 77 tokens are those of the release."""
    from weft.kernels.networks.show1 import PixelUNet, PixelUNetConfig

    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": (1, 1), "attention_factors": (2,)}
    small |= {"embedding_width": 32, "text_width": 32, "context_width": 32, "pooling_heads": 4, "head_width": 16}
    torch.manual_seed(1)
    network = PixelUNet(PixelUNetConfig(**small, temporal_heads=4)).eval()
    clip = stock_clip(encoder, kind)
    for prompt in ("a panda taking a selfie", ""):
        expected = network.encode_text(encoder(**released(prompt)).last_hidden_state)
        text = comfy.run("CLIPTextEncode", clip=clip, text=prompt)[0][0][0].float()
        assert text.shape[1] > 77
        found = network.encode_text(text)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "show-1-base: its text encoder is not T5's"),
        (
            "encoder.block.1.layer.1.DenseReluDense.wi_1.weight",
            "in show-1-base does not fit T5: .*wi_1.weight .* is mi",
        ),
    ],
)
def test_an_incomplete_text_encoder_is_refused(comfy, encoder, name, message):
    tensors = {key: tensor.half() for key, tensor in encoder.state_dict().items() if key != name}
    with pytest.raises(ValueError, match=message):
        clip_of(comfy, tensors)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("base", []),
        ("interpolation", ["network.in_channels=7", "data.frames=5"]),
        ("sr1", ["network.in_channels=6", "network.noise_levels=1000", "schedule.prediction=velocity"]),
    ],
)
def test_a_trained_stage_is_loaded_with_its_text_encoder(comfy, tmp_path, stage, changes):
    from weft.training.build import start
    from weft.training.config import override, read_recipe, read_table
    from weft.training.export import export

    table = read_table(Path(__file__).parents[1] / "data" / "training" / "show1.toml")
    override(table, [f"stage={stage}", *changes])
    with torch.inference_mode(False), torch.enable_grad():
        trainer = start(read_recipe(table, "show1.toml"), tmp_path / "run", torch.device("cpu"))
        trainer.run(max_steps=1)
    name = f"trained_{stage}.safetensors"
    export([tmp_path / "run"], comfy.base / "models" / "checkpoints" / name)
    model, clip, _ = comfy.run("WeftLoadCheckpoint", checkpoint=name)
    network = model.model.diffusion_model
    assert asdict(network.config) == asdict(trainer.task.unet.config) and network.config.stage == stage
    averaged = trainer.ema.networks["diffusion_model"].state_dict()
    assert all(torch.equal(value, averaged[key].half().to(value)) for key, value in network.state_dict().items())
    text = comfy.run("CLIPTextEncode", clip=clip, text="a red circle")[0][0][0]
    assert text.shape[-1] == network.config.text_width
    assert sampled(comfy, model, clip, network.config.noise_levels)


def sampled(comfy, model, clip, levels):
    """Two steps of KSampler and of Release Sampler with weights of one step of training: whether videos come of it."""
    import node_helpers

    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=16, height=16, frames=5)[0]
    shown = {"concat_latent_image": torch.rand(1, 3, 5, 16, 16), "concat_mask": torch.ones(1, 1, 5, 16, 16)}
    shown |= {"noise_level": 250} if levels else {}
    words, none = (comfy.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red circle", ""))
    words, none = (node_helpers.conditioning_set_values(part, shown) for part in (words, none))
    text = {"model": model, "positive": words, "negative": none}
    settings = {"seed": 1, "steps": 2, "sampler_name": "euler", "scheduler": "normal", "latent_image": latent}
    stock = comfy.run("KSampler", **text, **settings, cfg=3.0)[0]["samples"]
    sampler, sigmas = comfy.run("WeftReleaseSampler", model=model, kind="dpm-solver++", steps=2)
    walk = {"noise": comfy.run("RandomNoise", noise_seed=1)[0], "sampler": sampler, "sigmas": sigmas}
    guider = comfy.run("CFGGuider", **text, cfg=3.0)[0]
    released = comfy.run("SamplerCustomAdvanced", **walk, guider=guider, latent_image=latent)[0]["samples"]
    shape = (1, 3, 5, 16, 16)
    return all(part.shape == shape and part.isfinite().all() and part.std() > 1e-4 for part in (stock, released))
