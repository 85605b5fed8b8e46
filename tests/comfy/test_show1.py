"""Show-1's files in ComfyUI: the text of its stages on pixels."""

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
