"""Motion modules, mapping network and frame tokens on an image model of the core."""

import copy
import dataclasses
import logging

import pytest
import torch

FRAMES = 6


@pytest.fixture
def motion(comfy):
    """Loads a small network with random weights from a file of released names; gives MOTION and the network."""
    from weft.kernels.networks.harivo import FrameTokensConfig, MappingConfig, MotionConfig, MotionNetwork
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.harivo import save_motion

    parts = {
        "mapping": MappingConfig(heads=2, head_width=4),
        "tokens": FrameTokensConfig(width=12, text_tokens=77, frames=8, per_frame=2),
    }

    def load(*wanted, **config):
        torch.manual_seed(1)
        chosen = {name: parts[name] for name in wanted}
        described = MotionConfig(**{"widths": (32, 32, 64, 64), "max_frames": 8, **chosen, **config})
        with torch.inference_mode(False):
            network = MotionNetwork(described).eval()
            folder = comfy.base / "models" / "animatediff_models"
            folder.mkdir(exist_ok=True)
            save_motion(folder / "m.safetensors", network, NoiseSchedule(0.00085, 0.012, spacing="even"))
        return comfy.run("WeftLoadMotion", motion="m.safetensors")[0], network

    return load


@pytest.fixture
def run(comfy):
    """Sample by the stock KSampler; LATENT's samples."""

    def sample(model, rows=FRAMES, texts=(77, 77), **changed):
        text = [torch.randn(1, count, 12, generator=torch.manual_seed(seed)) for seed, count in enumerate(texts)]
        inputs = {"positive": [[text[0], {}]], "negative": [[text[1], {}]]}
        inputs |= {"latent_image": {"samples": torch.zeros(rows, 4, 8, 8)}, "seed": 3, "steps": 2, "cfg": 3.0}
        inputs |= {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return comfy.run("KSampler", model=model, **{**inputs, **changed})[0]["samples"]

    return sample


def applied(comfy, model, motion, **inputs):
    return comfy.run("WeftHarivoApply", model=model, motion=motion, **inputs)[0]


def reference(unet, network, frames, *, per_clip_norms=False):
    """A copy of the UNet with the motion modules put into its blocks."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, SpatialTransformer, TimestepBlock

    class Behind(TimestepBlock):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x, emb):
            from weft.kernels.layers.resnet import Step

            return self.module(x, Step(frames, x.new_empty(0)))

    twin = copy.deepcopy(unet)
    for place, blocks in (
        ("input", twin.input_blocks),
        ("middle", [twin.middle_block]),
        ("output", twin.output_blocks),
    ):
        for index, block in enumerate(blocks):
            layers = [layer for layer in block if isinstance(layer, ResBlock | SpatialTransformer)]
            module = network.motion_module(place, index) if layers else None
            if module is not None:
                kinds = [type(layer).__name__ for layer in block]
                after = (
                    max(number for number, kind in enumerate(kinds) if kind == "SpatialTransformer")
                    if ("SpatialTransformer" in kinds)
                    else kinds.index("ResBlock")
                )
                block.insert(after + 1, Behind(module))
    return twin


@pytest.mark.parametrize("middle", [False, True])
def test_modules_act_where_they_were_trained(comfy, core_models, motion, run, middle):
    """Equal to modules that are inserted into the UNet's own blocks."""
    model, _ = core_models["images"]()
    loaded, network = motion(middle=middle)
    found = run(applied(comfy, model, loaded, schedule="of the image model"))
    with torch.inference_mode(False):
        twin = reference(model.model.diffusion_model, network, FRAMES)
    inserted = model.clone()
    inserted.add_object_patch("diffusion_model", twin)
    torch.testing.assert_close(found, run(inserted), rtol=1e-4, atol=1e-4)
    assert (found - run(model)).abs().max() > 0.1


def test_image_layers_in_parts(comfy, core_models, motion, run, monkeypatch):
    """One row at a time gives what all at once give; patches inside transformers still see all rows of a call."""
    from weft.kernels.layers.chunking import map_frames

    bridge, parts, seen = comfy.ours("model_loaders.bridge.motion"), [], []

    def one_by_one(layer, function, images, rows, width):
        def counted(part, row):
            parts.append((type(layer).__name__, len(part)))
            return function(part, row)

        whole = function(images, rows)
        # Layer by layer: at 8 x 8, norms of two values each make much of a last digit.
        found = map_frames(counted, images, rows, 1 << 40)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
        return whole

    def watch(output, options):
        seen.append(len(output))
        return output

    model, _ = core_models["images"]()
    patched = applied(comfy, model, motion("mapping", "tokens")[0], schedule="of the image model")
    whole = run(patched)
    monkeypatch.setattr(bridge, "map_images", one_by_one)
    assert torch.equal(run(patched), whole)
    assert {kind for kind, _ in parts} == {"ResBlock", "SpatialTransformer"} and {rows for _, rows in parts} == {1}
    parts.clear()
    watched = patched.clone()
    watched.set_model_attn2_output_patch(watch)
    assert torch.equal(run(watched), whole)
    assert {kind for kind, _ in parts} == {"ResBlock"} and min(seen) >= FRAMES


def test_the_image_model_is_left_as_it_was(comfy, core_models, motion, run):
    model, _ = core_models["images"]()
    names = set(model.model.state_dict())
    before = run(model)
    patched = applied(comfy, model, motion("mapping", "tokens")[0])
    assert not torch.equal(run(patched), before)
    assert torch.equal(run(model), before)
    assert set(model.model.state_dict()) == names
    assert patched.get_model_object("model_sampling").sigma_max == pytest.approx(25.146, abs=1e-3)
    assert model.get_model_object("model_sampling").sigma_max == pytest.approx(14.615, abs=1e-3)


def test_mapping_network_and_tokens_reach_the_unet_alone(comfy, core_models, motion, run):
    """The UNet sees the mapped latents and longer text; the sampler keeps what is not mapped."""
    from comfy.patcher_extension import WrappersMP

    model, _ = core_models["images"]()
    loaded, network = motion("mapping", "tokens")
    with torch.inference_mode(False), torch.no_grad():
        for module in (*network.down, *network.up):
            module.project_out.weight.zero_()
            module.project_out.bias.zero_()
    seen = []

    def look(executor, x, timesteps, context, *args, **kwargs):
        seen.append((x.clone(), context.clone()))
        return executor(x, timesteps, context, *args, **kwargs)

    # Wrappers run in the order in which they were added: one before, one behind.
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "before", look)
    patched = applied(comfy, model, loaded)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "behind", look)
    run(patched, steps=1)
    (x, text), (mapped, longer) = seen[:2]
    assert x.shape == (2 * FRAMES, 4, 8, 8) and text.shape == (2 * FRAMES, 77, 12)
    expected = network.mapping(x.unflatten(0, (2, FRAMES)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(longer, network.tokens.append(text, FRAMES), rtol=1e-4, atol=1e-4)


def test_videos_and_branches_do_not_see_each_other(comfy, core_models, motion, run):
    model, _ = core_models["images"]()
    loaded = motion("mapping", "tokens")[0]
    both = run(applied(comfy, model, loaded, frames=FRAMES), rows=2 * FRAMES)
    single = run(applied(comfy, model, loaded))
    torch.testing.assert_close(both[:FRAMES], single, rtol=1e-4, atol=1e-4)
    # Frames of one video do see each other.
    noisy = torch.zeros(FRAMES, 4, 8, 8)
    noisy[0] = 3.0
    changed = run(applied(comfy, model, loaded), latent_image={"samples": noisy}, denoise=0.5)
    plain = run(applied(comfy, model, loaded), denoise=0.5)
    assert (changed[-1] - plain[-1]).abs().max() > 1e-3
    # Guidance 1 runs one branch, in which the frames are still all rows.
    assert run(applied(comfy, model, loaded), cfg=1.0).isfinite().all()


def test_a_repeated_text_keeps_its_weight(comfy, core_models, motion, run):
    """Prompts of two lengths are brought to one by repetition: as good as one branch after the other."""
    model, _ = core_models["images"]()
    patched = applied(comfy, model, motion("tokens")[0])
    together = run(patched, texts=(77, 154), steps=1)
    apart = patched.clone()
    apart.model_options["sampler_calc_cond_batch_function"] = one_by_one
    torch.testing.assert_close(together, run(apart, texts=(77, 154), steps=1), rtol=1e-3, atol=1e-3)


def one_by_one(arguments):
    """Each guidance branch in a call of its own."""
    from comfy.samplers import calc_cond_batch

    options = {**arguments["model_options"]}
    options.pop("sampler_calc_cond_batch_function")
    calls = [[[cond]] for cond in arguments["conds"]]
    return [
        calc_cond_batch(arguments["model"], call[0], arguments["input"], arguments["sigma"], options)[0]
        for call in calls
    ]


def test_text_without_a_whole_chunk_gets_no_tokens(comfy, core_models, motion, run, caplog):
    model, _ = core_models["images"]()
    with caplog.at_level(logging.WARNING):
        assert run(applied(comfy, model, motion("tokens")[0]), texts=(7, 7)).isfinite().all()
    assert caplog.text.count("frame tokens are made of 77") == 1, "once, not at every step"


def test_first_version_takes_norms_over_the_clip(comfy, core_models, motion, run):
    """Statistics of residual blocks and of the output are of all frames."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    model, _ = core_models["images"]()
    loaded, network = motion(max_frames=24)
    # A file of 24 frames is one of the first version; this one says that it is ours, so it is made one here.
    part = loaded.checkpoint.components["motion_modules"]
    part = dataclasses.replace(part, config=dataclasses.replace(part.config, joint_norms=True))
    checkpoint = dataclasses.replace(loaded.checkpoint, components={"motion_modules": part})
    loaded = dataclasses.replace(loaded, checkpoint=checkpoint)
    found = run(applied(comfy, model, loaded, schedule="of the image model"), cfg=1.0)
    with torch.inference_mode(False):
        twin = reference(model.model.diffusion_model, network, FRAMES)
        for layer in [layer for layer in twin.modules() if isinstance(layer, ResBlock)]:
            layer.in_layers[0], layer.out_layers[0] = (
                OverClip(norm) for norm in (layer.in_layers[0], layer.out_layers[0])
            )
        twin.out[0] = OverClip(twin.out[0])
    inserted = model.clone()
    inserted.add_object_patch("diffusion_model", twin)
    torch.testing.assert_close(found, run(inserted, cfg=1.0), rtol=1e-3, atol=1e-3)
    assert not any(layer._forward_hooks for layer in model.model.diffusion_model.modules())


class OverClip(torch.nn.Module):
    """A GroupNorm of images as one of a clip that is the whole batch."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        clip = x.transpose(0, 1)[None]
        out = torch.nn.functional.group_norm(
            clip, self.norm.num_groups, self.norm.weight, self.norm.bias, self.norm.eps
        )
        return out[0].transpose(0, 1)


def test_context_windows(comfy, core_models, motion, run):
    """Longer than the position tables, in windows; the core's anchor frame counts."""
    model, _ = core_models["images"]()
    patched = applied(comfy, model, motion("mapping", "tokens")[0])
    windows = {"context_overlap": 2, "context_schedule": "standard_static", "dim": 0}
    assert (
        run(comfy.run("ContextWindowsManual", model=patched, context_length=6, **windows)[0], rows=12).isfinite().all()
    )
    with pytest.raises(ValueError, match="know 8 frames, found 12: make at most 8"):
        run(patched, rows=12)
    several = applied(comfy, model, motion()[0], frames=6)
    with pytest.raises(ValueError, match="without regard to its videos of 6 frames"):
        run(comfy.run("ContextWindowsManual", model=several, context_length=6, **windows)[0], rows=12)


def test_bad_input(comfy, core_models, motion, run, toy):
    model, _ = core_models["images"]()
    loaded = motion()[0]
    with pytest.raises(ValueError, match="know 8 frames, found 9"):
        applied(comfy, model, loaded, frames=9)
    with pytest.raises(ValueError, match="6 latents, which is no multiple of 4 frames"):
        run(applied(comfy, model, loaded, frames=4))
    with pytest.raises(ValueError, match="moves Stable Diffusion 1.5, found VideoModelConfig"):
        applied(comfy, toy.model, loaded)
    with pytest.raises(ValueError, match=r"widths \[32, 32, 32, 32, 64, 64, 96, 96\] on the way down"):
        applied(comfy, model, motion(widths=(32, 32, 64, 96))[0])
    from comfy.supported_models import SDXL

    model.model.model_config = SDXL.__new__(SDXL)
    with pytest.raises(ValueError, match="moves Stable Diffusion 1.5, found SDXL"):
        applied(comfy, model, loaded)


def test_lora_before_or_after(comfy, core_models, motion, run):
    model, _ = core_models["images"]()
    loaded = motion("mapping")[0]
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    change = {name: (torch.randn(32, 32, generator=torch.manual_seed(0)),)}

    def with_lora(model):
        patched = model.clone()
        assert patched.add_patches(change)
        return patched

    before, after = applied(comfy, with_lora(model), loaded), with_lora(applied(comfy, model, loaded))
    plain = run(applied(comfy, model, loaded))
    assert torch.equal(run(before), run(after)) and not torch.equal(run(before), plain)


@pytest.fixture
def control_net(core_models):
    """A ControlNet of the core for the small image model, with random weights."""
    import comfy.cldm.cldm
    from comfy.controlnet import ControlNet
    from comfy.ops import manual_cast

    unet, _ = core_models["images"]()
    config = {**unet.model.model_config.unet_config, "dtype": torch.float32, "operations": manual_cast, "device": None}
    config = {key: value for key, value in config.items() if key not in ("out_channels", "transformer_depth_output")}
    torch.manual_seed(2)
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3).eval()
        for weight in network.parameters():
            weight.requires_grad_(False).normal_(0.0, 0.1)
    cpu = torch.device("cpu")
    return ControlNet(network, load_device=cpu, manual_cast_dtype=None)


def test_controlnet_on_chosen_frames(comfy, core_models, run, control_net):
    """Frames are independent without motion: the chosen ones are as under a hint, the others as without."""
    model, _ = core_models["images"]()
    hints = torch.rand(FRAMES, 64, 64, 3, generator=torch.manual_seed(0))

    def controlled(net, images):
        text = [torch.randn(1, 77, 12, generator=torch.manual_seed(seed)) for seed in range(2)]
        positive, negative = comfy.run(
            "ControlNetApplyAdvanced",
            positive=[[text[0], {}]],
            negative=[[text[1], {}]],
            control_net=net,
            image=images,
            strength=0.8,
            start_percent=0.0,
            end_percent=1.0,
        )
        return run(model, positive=positive, negative=negative)

    free, stock = run(model), controlled(control_net, hints)
    every = comfy.run("WeftControlNetOnFrames", control_net=control_net, frames="0, 1, 2, 3, 4, 5")[0]
    torch.testing.assert_close(controlled(every, hints), stock, rtol=1e-4, atol=1e-4)
    some = comfy.run("WeftControlNetOnFrames", control_net=control_net, frames="0, 4")[0]
    found = controlled(some, hints[[0, 4]])
    torch.testing.assert_close(found[[0, 4]], stock[[0, 4]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[[1, 2, 3, 5]], free[[1, 2, 3, 5]], rtol=1e-4, atol=1e-4)
    assert (found[0] - free[0]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="There are 3 hints for 2 chosen frames"):
        controlled(some, hints[:3])
    late = comfy.run("WeftControlNetOnFrames", control_net=control_net, frames="0, 6")[0]
    with pytest.raises(ValueError, match="Frame 6 was chosen for the ControlNet, the video has frames 0 to 5"):
        controlled(late, hints[:2])


@pytest.mark.parametrize(
    ("frames", "message"),
    [("", "No frame was chosen"), ("0, x", "Found 'x' among the frames"), ("1, 1", "Found a frame twice")],
)
def test_frames_that_cannot_be_read(comfy, control_net, frames, message):
    with pytest.raises(ValueError, match=message):
        comfy.run("WeftControlNetOnFrames", control_net=control_net, frames=frames)
