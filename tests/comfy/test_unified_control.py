"""VersVideo's ControlNet through the stock Apply ControlNet node."""

import pytest
import torch

FRAMES, SIDE = 3, 4


@pytest.fixture(autouse=True)
def held_back(comfy, monkeypatch):
    """Nodes that are not offered yet."""
    for node in comfy.ours("nodes.versvideo").HELD_BACK:
        monkeypatch.setitem(comfy.mappings, node.define_schema().node_id, node)


@pytest.fixture
def networks(comfy):
    """A small denoiser and a ControlNet for it in which everything acts, as the files of the loaders."""
    versvideo, control = comfy.ours("kernels.networks.versvideo"), comfy.ours("kernels.networks.unified_control")
    files, controls = comfy.ours("model_loaders.versvideo"), comfy.ours("model_loaders.unified_control")
    config = versvideo.VersVideoUNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,), context_width=12, heads=4,
        depth=1,
    )  # fmt: skip
    for folder in ("diffusion_models", "controlnet"):
        (comfy.base / "models" / folder).mkdir(exist_ok=True)
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        unet = versvideo.VersVideoUNet(config).eval()
        network = control.UnifiedControlNet.of(unet).eval().with_condition("sketch").eval()
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        files.save_unet(comfy.base / "models" / "diffusion_models" / "controlled.safetensors", unet, files.SCHEDULE)
        controls.save_unified_control(comfy.base / "models" / "controlnet" / "unified.safetensors", network)
    return unet, network, files.SCHEDULE


@pytest.fixture
def model(comfy, networks):
    return comfy.run("WeftLoadDiffusionModel", model_name="controlled.safetensors")[0]


@pytest.fixture
def loaded(comfy, networks):
    return comfy.run("WeftLoadVersVideoControl", control_net_name="unified.safetensors")[0]


@pytest.fixture
def texts():
    generator = torch.manual_seed(1)
    return [[[torch.randn(1, 77, 12, generator=generator), {}]] for _ in range(2)]


@pytest.fixture
def maps():
    """As IMAGE."""
    return torch.rand(FRAMES, 8 * SIDE, 8 * SIDE, 3, generator=torch.manual_seed(2))


@pytest.fixture
def sample(comfy, model, texts):
    """Sample under (ControlNet, images, options) in turn."""

    def run(*given, frames=FRAMES, steps=2, model=model):
        positive, negative = texts
        for net, images, options in given:
            settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **options}
            positive, negative = comfy.run(
                "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, image=images,
                **settings,
            )[:2]  # fmt: skip
        latent = comfy.run("WeftEmptyVideoLatent", model=model, width=8 * SIDE, height=8 * SIDE, frames=frames)[0]
        return comfy.run(
            "KSampler", model=model, seed=5, steps=steps, cfg=3.0, sampler_name="euler", scheduler="simple",
            positive=positive, negative=negative, latent_image=latent, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    return run


def of(comfy, net, condition, other=""):
    return comfy.run("WeftVersVideoConditionType", control_net=net, condition=condition, other=other)[0]


def test_a_step_is_the_networks_in_torch(comfy, networks, loaded, sample, texts, maps):
    """One step of Euler from the highest level to zero: the guided clean clip."""
    unet, network, schedule = networks
    noise = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=torch.manual_seed(5))
    sigma = schedule.sigmas()[-1].float()
    spread = (1 + sigma**2).sqrt()
    x, time = noise, torch.tensor([999.0])  # noise * spread, scaled by 1 / spread
    hints = maps.movedim(-1, 1)[None]
    clean = []
    for text in texts:
        control = network(x, time, text[0][0], hints, "hed")
        for part in control:
            part *= 0.7
        velocity = unet(x, time, text[0][0], control)
        clean.append(noise / spread - velocity * sigma / spread)
    expected = (clean[1] + 3.0 * (clean[0] - clean[1])) / 0.18215
    found = sample((of(comfy, loaded, "hed"), maps, {"strength": 0.7}), steps=1)
    free = sample(steps=1)
    assert (found - free).abs().max() > 0.05 * free.std()
    # One step of float32, guided, where pairs are computed together.
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_conditions_have_their_adapter_strength_and_range(comfy, loaded, sample, maps):
    free = sample()
    found = {name: sample((of(comfy, loaded, name), maps, {})) for name in ("image", "canny", "hed", "depth")}
    found["sketch"] = sample((of(comfy, loaded, "other", "sketch"), maps, {}))
    results = [free, *found.values()]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(results) for b in results[:i])
    canny = of(comfy, loaded, "canny")
    assert torch.equal(sample((canny, maps, {"strength": 0.0})), free)
    late = sample((canny, maps, {"start_percent": 0.9}))
    torch.testing.assert_close(late, free, rtol=0, atol=0)
    half = sample((canny, maps, {"end_percent": 0.3}))
    assert not torch.equal(half, free) and not torch.equal(half, found["canny"])
    # The same object again, with other maps.
    assert torch.equal(sample((canny, maps, {})), found["canny"])
    assert (sample((canny, maps.flip(0), {})) - found["canny"]).abs().max() > 1e-4


def test_several_conditions_at_once(comfy, loaded, model, texts, maps):
    """What they add is the sum of what each adds."""
    hed, depth = of(comfy, loaded, "hed"), of(comfy, loaded, "depth")
    nets = []
    for net, images, strength in ((hed, maps, 0.5), (depth, maps[:1], 0.8)):
        nets.append(net.copy().set_cond_hint(images.movedim(-1, 1), strength, (0.0, 1.0)))
    x, cond = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=torch.manual_seed(3)), {"c_crossattn": texts[0][0][0]}
    sigma = torch.tensor([3.0])

    def added(net):
        net.pre_run(model.model, model.model.model_sampling.percent_to_sigma)
        return net.get_control(x, sigma, cond, 1, {})

    alone = [added(net) for net in nets]
    both = added(nets[1].copy().set_previous_controlnet(nets[0]))
    for part in ("output", "middle"):
        for found, first, second in zip(both[part], alone[0][part], alone[1][part], strict=True):
            torch.testing.assert_close(found, first + second, rtol=0, atol=1e-5)


def test_one_image_stands_for_all_frames(comfy, loaded, sample, maps):
    net = of(comfy, loaded, "image")
    one = sample((net, maps[:1], {}))
    torch.testing.assert_close(one, sample((net, maps[:1].expand(FRAMES, -1, -1, -1), {})), rtol=0, atol=1e-5)
    # Of another size, it is brought to that of the frames.
    large = maps[:1].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(sample((net, large, {})), one, rtol=0, atol=1e-5)


def test_context_windows_get_the_maps_of_their_frames(comfy, loaded, model, texts):
    """Of a window, what is added is that of its frames alone."""
    net = of(comfy, loaded, "hed")
    maps = torch.rand(8, 3, 8 * SIDE, 8 * SIDE, generator=torch.manual_seed(2))
    x, cond = torch.randn(1, 4, 3, SIDE, SIDE, generator=torch.manual_seed(3)), {"c_crossattn": texts[0][0][0]}

    class Window:
        index_list, total_frames = [4, 5, 6], 8

    def added(images, options):
        mine = net.copy().set_cond_hint(images, 1.0, (0.0, 1.0))
        mine.pre_run(model.model, model.model.model_sampling.percent_to_sigma)
        return mine.get_control(x, torch.tensor([3.0]), cond, 1, options)

    found, expected = added(maps, {"context_window": Window()}), added(maps[4:7], {})
    assert all(torch.equal(a, b) for a, b in zip(found["output"], expected["output"], strict=True))


def test_style_is_read_by_model_and_control_net(comfy, networks, loaded, sample, maps, texts):
    """Tokens of an image behind both texts; the model and the ControlNet see them."""
    from comfy.clip_vision import Output

    styles, controls = comfy.ours("kernels.networks.style_adapter"), comfy.ours("model_loaders.unified_control")
    (comfy.base / "models" / "style_models").mkdir(exist_ok=True)
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(4)
        style = styles.StyleAdapter(styles.StyleAdapterConfig(10, 12, 3))
        path = comfy.base / "models" / "style_models" / "style.safetensors"
        controls.save_unified_control(path, networks[1], style)
    seen = Output()
    seen.image_embeds = torch.randn(1, 10)
    given = {"positive": texts[0], "negative": texts[1], "clip_vision_output": seen, "style_name": "style.safetensors"}
    positive, negative = comfy.run("WeftVersVideoStyle", **given)[:2]
    torch.testing.assert_close(positive[0][0], style.append(texts[0][0][0], seen.image_embeds), rtol=0, atol=1e-6)
    torch.testing.assert_close(negative[0][0], style.append(texts[1][0][0], torch.zeros(1, 10)), rtol=0, atol=1e-6)
    assert texts[0][0][0].shape[1] == 77, "what was given stays"
    plain = sample()
    texts[0][:], texts[1][:] = positive, negative
    styled, steered = sample(), sample((of(comfy, loaded, "hed"), maps, {}))
    assert (styled - plain).abs().max() > 1e-4 and (steered - styled).abs().max() > 1e-4
    seen.image_embeds = torch.randn(2, 10)
    with pytest.raises(ValueError, match="Found the embeddings of 2 images, expected one"):
        comfy.run("WeftVersVideoStyle", **given)


def test_bad_input(comfy, loaded, sample, maps, core_models):
    hed = of(comfy, loaded, "hed")
    with pytest.raises(ValueError, match="There are 2 hed maps for a video of 3 frames: give one image for each frame"):
        sample((hed, maps[:2], {}))
    with pytest.raises(
        ValueError, match=r"unified\.safetensors: There is no adapter for the condition 'pose', expected"
    ):
        of(comfy, loaded, "other", "pose")
    with pytest.raises(ValueError, match=r"reads maps of several conditions \(image, canny, .* by VersVideo Condition"):
        sample((loaded, maps, {}))
    with pytest.raises(ValueError, match="Found a str, expected VersVideo's ControlNet"):
        of(comfy, "x", "hed")
    with pytest.raises(
        ValueError, match=r"steers VersVideo, whose latents are \(batch, 4, frames, .* found \(2, 4, 4, 4"
    ):
        mine = hed.copy().set_cond_hint(maps.movedim(-1, 1), 1.0, (0.0, 1.0))
        mine.get_control(torch.zeros(2, 4, 4, 4), torch.tensor([3.0]), {}, 1, {})
