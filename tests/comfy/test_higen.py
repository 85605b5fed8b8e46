"""HiGen and ModelScopeT2V as native models."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def loaded(comfy):
    """Loads a tiny network from a file of its weights alone; gives MODEL and the network."""
    from weft.kernels.networks.higen import HiGenUNet, HiGenUNetConfig, SpaceTimeUNet, SpaceTimeUNetConfig

    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (1,)}
    small |= {"head_width": 8, "context_width": 24}
    kinds = {
        "higen": lambda: HiGenUNet(HiGenUNetConfig(**small, text_width=20, resampled_tokens=5)),
        "modelscope": lambda: SpaceTimeUNet(SpaceTimeUNetConfig(**small)),
    }

    def load(kind):
        torch.manual_seed(0)
        with torch.inference_mode(False):
            network = kinds[kind]().eval()
            folder = comfy.base / "models" / "diffusion_models"
            folder.mkdir(exist_ok=True)
            save_file(network.state_dict(), folder / f"{kind}.safetensors")
        model = comfy.run("WeftLoadDiffusionModel", model_name=f"{kind}.safetensors", dtype="fp32")[0]
        return model, network

    return load


@pytest.mark.parametrize(("kind", "width"), [("higen", 20), ("modelscope", 24)])
@pytest.mark.parametrize("frames", [1, 3])
def test_one_step_is_the_network(comfy, loaded, kind, width, frames):
    """Velocity on a schedule without terminal signal for HiGen, noise for ModelScope; Stable Diffusion's latents."""
    from weft.model_loaders.higen import HIGEN_SCHEDULE, MODELSCOPE_SCHEDULE

    model, network = loaded(kind)
    x, text = torch.randn(2, 4, frames, 8, 8), torch.randn(2, 7, width)
    schedule = HIGEN_SCHEDULE if kind == "higen" else MODELSCOPE_SCHEDULE
    alpha = schedule.alphas_cumprod()[500].float()
    sigma = schedule.sigmas()[500].float()
    found = model.model.apply_model(x, sigma.expand(2), c_crossattn=text)
    noisy = x * alpha.sqrt()
    predicted = network(noisy, torch.full((2,), 500.0), text)
    expected = alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted if kind == "higen" else x - sigma * predicted
    # ComfyUI finds the timestep of a float32 sigma.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert model.get_model_object("latent_format").spec.scale == 0.18215


def test_a_picture_is_sampled_by_the_stock_sampler(comfy, loaded):
    model, _ = loaded("higen")
    latent = comfy.run("WeftEmptyVideoLatent", model=model, width=64, height=64, frames=1)[0]
    text = [[torch.randn(1, 7, 20), {}]]
    settings = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
    found = comfy.run("KSampler", model=model, positive=text, negative=text, latent_image=latent, **settings)[0]
    assert found["samples"].shape == (1, 4, 1, 8, 8) and found["samples"].isfinite().all()
    wrong = [[torch.randn(1, 7, 24), {}]]
    with pytest.raises(ValueError, match="text has width 24, this model was made for 20"):
        comfy.run("KSampler", model=model, positive=wrong, negative=wrong, latent_image=latent, **settings)
