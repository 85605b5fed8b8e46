"""The trainer's moving UNet gives what the nodes give in ComfyUI."""

import pytest
import torch

FRAMES = 5
WIDTHS = (32, 32, 64, 64)


@pytest.fixture
def image_unet(core_models):
    """A small image model of the core and a UNet of diffusers with the same weights."""
    from comfy.utils import unet_to_diffusers
    from diffusers import UNet2DConditionModel

    model, _ = core_models["images"]()
    core = model.model.diffusion_model
    with torch.inference_mode(False):
        unet = UNet2DConditionModel(
            block_out_channels=WIDTHS, attention_head_dim=8, cross_attention_dim=12, sample_size=8
        )
        config = {**model.model.model_config.unet_config}
        config.setdefault("num_head_channels", -1)
        names, weights = unet_to_diffusers(config), core.state_dict()
        unet.load_state_dict({name: weights[names[name]].clone() for name in unet.state_dict()})
        unet.eval().requires_grad_(False)
    return model, unet


@pytest.mark.parametrize("middle", [False, True])
def test_equal_to_the_nodes(comfy, image_unet, middle):
    """Same weights, latents, times and texts: motion modules, mapping network and frame tokens."""
    from comfy.patcher_extension import WrappersMP

    from weft.kernels.networks.harivo import FrameTokensConfig, MappingConfig, MotionConfig, MotionNetwork
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.harivo import save_motion
    from weft.training.moving_unet import MovingUNet

    model, unet = image_unet
    torch.manual_seed(1)
    with torch.inference_mode(False):
        parts = {"mapping": MappingConfig(heads=2, head_width=4), "tokens": FrameTokensConfig(12, 77, 8, 2)}
        network = MotionNetwork(MotionConfig(WIDTHS, middle=middle, max_frames=8, **parts)).eval().requires_grad_(False)
        for weight in network.parameters():
            weight.mul_(2.0)
        folder = comfy.base / "models" / "animatediff_models"
        folder.mkdir(exist_ok=True)
        save_motion(folder / "m.safetensors", network, NoiseSchedule())
    calls = []

    def look(executor, x, timesteps, context, *args, **kwargs):
        calls.append((x, timesteps, context, executor(x, timesteps, context, *args, **kwargs)))
        return calls[-1][-1]

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "outermost", look)
    loaded = comfy.run("WeftLoadMotion", motion="m.safetensors")[0]
    patched = comfy.run("WeftHarivoApply", model=model, motion=loaded)[0]
    text = [torch.randn(1, 77, 12, generator=torch.manual_seed(seed)) for seed in range(2)]
    comfy.run(
        "KSampler", model=patched, positive=[[text[0], {}]], negative=[[text[1], {}]], seed=3, steps=2, cfg=3.0,
        latent_image={"samples": torch.zeros(FRAMES, 4, 8, 8)}, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    moving, plain = MovingUNet(unet), MotionNetwork(MotionConfig(WIDTHS, middle=middle, max_frames=8))
    plain.load_state_dict({name: weight for name, weight in network.state_dict().items() if name in plain.state_dict()})
    for x, times, context, expected in calls:
        noisy = x.unflatten(0, (-1, FRAMES)).transpose(1, 2)
        found = moving(network, noisy, times[::FRAMES], context[::FRAMES])
        expected = expected.unflatten(0, (-1, FRAMES)).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert len(calls) == 2 and calls[0][0].shape == (2 * FRAMES, 4, 8, 8)
    x, times, context, expected = calls[0]
    noisy, clips = x.unflatten(0, (-1, FRAMES)).transpose(1, 2), slice(None, None, FRAMES)
    found = moving(network, noisy, times[clips], context[clips])
    # Each part is seen in what is compared.
    for other, still in ((network, True), (plain, False)):
        changed = moving(other, noisy, times[clips], context[clips], still=still)
        assert (found - changed).abs().max() > 0.01
