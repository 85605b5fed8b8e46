"""VersVideo's temporal decoder on VAEs of ComfyUI and of this pack, through the stock nodes."""

import pytest
import torch

FRAMES = 7
SIZES = {"double_z": True, "z_channels": 4, "in_channels": 3, "out_ch": 3, "num_res_blocks": 1, "resolution": 64}
SIZES |= {"ch": 32, "ch_mult": [1, 2, 2], "attn_resolutions": [], "dropout": 0.0}


@pytest.fixture(autouse=True)
def held_back(comfy, monkeypatch):
    """Nodes that are not offered yet."""
    for node in comfy.ours("nodes.versvideo").HELD_BACK:
        monkeypatch.setitem(comfy.mappings, node.define_schema().node_id, node)


def drawn(network, std=0.05):
    """A network with random weights; masks and gates act."""
    with torch.inference_mode(False):
        for weight in network.parameters():
            weight.requires_grad_(False)
            (torch.nn.init.normal_(weight, std=std) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight)))
    return network


@pytest.fixture
def image(comfy):
    """A VAE of Stable Diffusion's layout, small (4 pixels for a latent), by ComfyUI's own class."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.sd import VAE

    torch.manual_seed(0)
    params = {"ddconfig": SIZES, "embed_dim": 4}
    shapes = {name: weight.shape for name, weight in AutoencoderKL(**params).state_dict().items()}
    weights = {name: torch.randn(shape) * shape[1:].numel() ** -0.5 for name, shape in shapes.items()}
    vae = VAE(sd=weights, config={"params": params}, dtype=torch.float32)
    vae.upscale_ratio = vae.downscale_ratio = 4
    return vae


@pytest.fixture
def tcm(comfy):
    """Writes a temporal decoder's file; gives its name and the network."""
    networks, files = comfy.ours("kernels.networks.temporal_vae"), comfy.ours("model_loaders.temporal_vae")

    def write(name="tcm.safetensors", silent=False, **config):
        numbers = {"widths": (32, 64, 64), "refinement_channels": 32, "refinement_mult": (1, 2), **config}
        torch.manual_seed(1)
        with torch.inference_mode(False):
            network = networks.TemporalVAE(networks.TemporalVAEConfig(**numbers, refinement_blocks=1)).eval()
            drawn(network)
            if silent:
                network.start_as_image_decoder()
            files.save_temporal_vae(comfy.base / "models" / "vae" / name, network)
        return name, network

    (comfy.base / "models" / "vae").mkdir(exist_ok=True)
    return write


@pytest.fixture
def latents():
    """Frames in the batch."""
    return torch.randn(FRAMES, 4, 6, 4, generator=torch.manual_seed(2))


def wrap(comfy, vae, name, **inputs):
    return comfy.run("WeftTemporalVAE", vae=vae, temporal_vae=name, **inputs)[0]


def decoded(comfy, vae, samples, **tiles):
    return comfy.run("VAEDecodeTiled" if tiles else "VAEDecode", vae=vae, samples={"samples": samples}, **tiles)[0]


def by_hand(comfy, image, network, latents):
    """The equations on ComfyUI's modules, in 0..1 as IMAGE."""
    decoder, model = image.first_stage_model.decoder, image.first_stage_model
    h = decoder.conv_in(model.post_quant_conv(latents))
    h = decoder.mid.block_2(decoder.mid.attn_1(decoder.mid.block_1(h, None)), None)
    for level in reversed(range(len(decoder.up))):
        for block in decoder.up[level].block:
            h = block(h, None)
        h = network.compensate(h, level + 1, len(latents))
        h = decoder.up[level].upsample(h) if level else h
    h = network.refine(decoder.conv_out(torch.nn.functional.silu(decoder.norm_out(h))))
    return ((h + 1) / 2).clamp(0, 1).movedim(1, -1)


def test_the_stock_node_decodes_by_the_equations(comfy, image, tcm, latents):
    name, network = tcm()
    vae = wrap(comfy, image, name)
    expected = by_hand(comfy, image, network, latents)
    plain = decoded(comfy, image, latents)
    assert (expected - plain).abs().mean() > 0.01
    # Float32, through layers that ComfyUI runs in another order of sums.
    torch.testing.assert_close(decoded(comfy, vae, latents), expected, rtol=0, atol=1e-4)
    # The image VAE is what it was.
    assert torch.equal(decoded(comfy, image, latents), plain)


def test_frames_in_the_batch_are_a_video_with_a_time_axis(comfy, image, tcm, latents):
    name, _ = tcm()
    video = latents.movedim(0, 1)[None]
    flat = decoded(comfy, wrap(comfy, image, name), latents)
    for vae in (image, comfy.run("WeftFramewiseVAE", vae=image)[0]):
        vae = wrap(comfy, vae, name)
        assert torch.equal(decoded(comfy, vae, video), flat)
        assert vae.decode(video).shape == (1, FRAMES, 24, 16, 3) and vae.decode(latents).shape == (FRAMES, 24, 16, 3)
    # Videos of a batch do not see each other, whichever way they are given.
    both = torch.cat([latents, latents.flip(0)])
    pairs = wrap(comfy, image, name, frames=FRAMES)
    found = decoded(comfy, pairs, both)
    torch.testing.assert_close(found[:FRAMES], flat, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(comfy, pairs, torch.cat([video, video.flip(2)])), found, rtol=0, atol=1e-5)
    assert (decoded(comfy, wrap(comfy, image, name), both)[:FRAMES] - flat).abs().max() > 1e-3


@pytest.mark.parametrize("at_once", [2, 5])
def test_long_videos_in_parts_are_those_of_the_whole(comfy, image, tcm, at_once):
    name, _ = tcm()
    latents = torch.randn(17, 4, 2, 2, generator=torch.manual_seed(3))
    whole = decoded(comfy, wrap(comfy, image, name, frames_at_once=17), latents)
    parts = decoded(comfy, wrap(comfy, image, name, frames_at_once=at_once), latents)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_tiles(comfy, image, tcm):
    name, _ = tcm()
    vae = wrap(comfy, image, name)
    latents = torch.randn(9, 4, 20, 8, generator=torch.manual_seed(3))
    whole = decoded(comfy, vae, latents)
    # Tiles of time alone: exactly the whole.
    in_time = decoded(comfy, vae, latents, tile_size=128, overlap=32, temporal_size=8, temporal_overlap=4)
    torch.testing.assert_close(in_time, whole, rtol=0, atol=1e-5)
    assert vae.first_stage_model.frames_at_once == 8
    # Tiles of space have norms and attention of their own, as those of the image VAE.
    in_space = decoded(comfy, vae, latents, tile_size=64, overlap=32)
    plain = decoded(comfy, image, latents)
    plain_in_space = decoded(comfy, image, latents, tile_size=64, overlap=32)
    assert in_space.shape == whole.shape
    assert (in_space - whole).abs().mean() < 2 * (plain_in_space - plain).abs().mean()
    video = latents.movedim(0, 1)[None]
    assert torch.equal(decoded(comfy, vae, video, tile_size=64, overlap=32), in_space)


def test_an_untrained_one_is_the_image_decoder(comfy, image, tcm, latents):
    name, _ = tcm(silent=True)
    found = decoded(comfy, wrap(comfy, image, name), latents)
    torch.testing.assert_close(found, decoded(comfy, image, latents), rtol=0, atol=1e-5)


def test_encoding_is_untouched(comfy, image, tcm):
    name, _ = tcm()
    pixels = torch.rand(5, 24, 32, 3, generator=torch.manual_seed(4))
    for given in (image, comfy.run("WeftFramewiseVAE", vae=image)[0]):
        vae = wrap(comfy, given, name)
        for node, inputs in (("VAEEncode", {}), ("VAEEncodeTiled", {"tile_size": 64, "overlap": 16})):
            expected = comfy.run(node, pixels=pixels, vae=given, **inputs)[0]["samples"]
            found = comfy.run(node, pixels=pixels, vae=vae, **inputs)[0]["samples"]
            assert torch.equal(found, expected)
    assert set(vae.get_sd()) == set(image.get_sd())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_on_the_frame_wise_autoencoders_of_this_pack(comfy, tcm, dimensions, latents):
    """As they come with models of pictures and of videos."""
    networks, checkpoints = comfy.ours("kernels.networks.video_autoencoder"), comfy.ours("model_loaders.checkpoint")
    bundle, schedules = comfy.ours("model_loaders.bundle"), comfy.ours("kernels.sampling.schedules")
    torch.manual_seed(0)
    with torch.inference_mode(False):
        config = networks.VideoAutoencoderConfig(8, (1, 4, 4), 4, 4, norm_groups=4, framewise=True)
        path = comfy.base / "models" / "vae" / f"own{dimensions}.safetensors"
        latent = checkpoints.LatentSpec(4, 4, dimensions=dimensions)
        parts = {"vae": networks.VideoAutoencoder(config)}
        schedule = schedules.NoiseSchedule()
        bundle.save_bundle(path, parts, system="higen", latent=latent, schedule=schedule, metadata={})
    own = comfy.run("WeftLoadVAE", vae_name=path.name)[0]
    video = latents.movedim(0, 1)[None]
    plain = decoded(comfy, own, latents if dimensions == 2 else video)
    silent = wrap(comfy, own, tcm("own_silent.safetensors", silent=True, widths=(16, 32))[0])
    torch.testing.assert_close(decoded(comfy, silent, video), plain, rtol=0, atol=1e-5)
    vae = wrap(comfy, own, tcm("own_tcm.safetensors", widths=(16, 32))[0], frames_at_once=3)
    found = decoded(comfy, vae, video)
    assert (found - plain).abs().mean() > 1e-3 and torch.equal(decoded(comfy, vae, latents), found)
    pixels = torch.rand(3, 8, 8, 3, generator=torch.manual_seed(0))
    assert torch.equal(vae.encode(pixels), own.encode(pixels))


def test_a_trained_one_decodes_as_in_the_trainer(comfy, tmp_path, root):
    """Two steps of training, export, the node, the stock decoder."""
    from weft.kernels.networks.temporal_vae import TemporalDecoder
    from weft.kernels.networks.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
    from weft.kernels.sampling.schedules import NoiseSchedule
    from weft.model_loaders.bundle import save_bundle
    from weft.model_loaders.checkpoint import LatentSpec
    from weft.training.build import start
    from weft.training.cli import main
    from weft.training.config import override, read_recipe, read_table

    folder = comfy.base / "models" / "vae"
    folder.mkdir(exist_ok=True)
    with torch.inference_mode(False):
        torch.manual_seed(0)
        host = VideoAutoencoder(VideoAutoencoderConfig(8, (1, 4, 4), norm_groups=4, framewise=True))
        latent = LatentSpec(4, 4)
        save_bundle(
            folder / "host.safetensors", {"vae": host}, system="x", latent=latent, schedule=NoiseSchedule(), metadata={}
        )
        table = read_table(root / "tests" / "data" / "training" / "temporal_vae.toml")
        override(table, [f"autoencoder.path={folder / 'host.safetensors'}", "run.steps=2", "run.validation_clips=0"])
        trainer = start(read_recipe(table, "tiny"), tmp_path / "run", torch.device("cpu"))
        trainer.run()
        assert main(["export", str(tmp_path / "run"), "--out", str(folder / "trained.safetensors")]) == 0
    latents = torch.randn(5, 4, 4, 4, generator=torch.manual_seed(0))
    vae = wrap(comfy, comfy.run("WeftLoadVAE", vae_name="host.safetensors")[0], "trained.safetensors")
    network, image = trainer.ema.networks["temporal_vae"].half().float(), trainer.task.autoencoder
    decoder = TemporalDecoder(network, image.decode_frames, list(image.decoder.stages))
    expected = ((decoder(latents.movedim(0, 1)[None]) + 1) / 2).clamp(0, 1)[0].movedim(0, -1)
    torch.testing.assert_close(decoded(comfy, vae, latents), expected, rtol=0, atol=1e-5)


def test_weights_in_half_precision(comfy, image, tcm, latents):
    """The file's weights come to the precision of the VAE."""
    name, network = tcm()
    path = comfy.base / "models" / "vae" / name
    with torch.inference_mode(False):
        comfy.ours("model_loaders.temporal_vae").save_temporal_vae(path, network.half())
    vae = wrap(comfy, image, name)
    expected = by_hand(comfy, image, network.float(), latents)
    torch.testing.assert_close(decoded(comfy, vae, latents), expected, rtol=0, atol=1e-4)


def test_memory_is_that_of_the_part(comfy, image, tcm):
    name, _ = tcm()
    vae = wrap(comfy, image, name, frames_at_once=4)
    of = [vae.memory_used_decode((1, 4, frames, 6, 4), torch.float32) for frames in (1, 12, 100)]
    assert of[1] == of[2] == 12 * of[0]
    from weft.benchmarks.memory import LiveTensors

    for frames in (4, 16):
        latents = torch.randn(1, 4, frames, 8, 8)
        with LiveTensors() as seen:
            vae.first_stage_model.frames_at_once = 4
            vae.first_stage_model.decode(latents)
        # Frames around the part weigh more in a network as small and pictures as low.
        assert seen.peak / 1.25 <= vae.memory_used_decode(latents.shape, torch.float32) <= 3 * seen.peak


def test_comfyui_loads_the_network_with_the_image_vae(comfy, image, tcm, latents):
    from comfy import model_management

    name, _ = tcm()
    vae = wrap(comfy, image, name)
    model_management.unload_all_models()
    decoded(comfy, vae, latents)
    loaded = {type(entry.model.model).__name__ for entry in model_management.current_loaded_models}
    assert {"AutoencoderKL", "TemporalVAE"} <= loaded


def test_an_interrupted_decoding_stops_between_parts(comfy, image, tcm, latents):
    from comfy import model_management

    vae = wrap(comfy, image, tcm()[0], frames_at_once=2)
    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        decoded(comfy, vae, latents)
    assert not any(module._forward_hooks for module in image.first_stage_model.modules())
    assert decoded(comfy, vae, latents).isfinite().all()


# Bad input


def test_vaes_of_other_kinds(comfy, image, image_vae, tcm, toy, latents):
    name, _ = tcm()
    pattern = r"image VAE of Stable Diffusion's kind, with 4 latent channels and a decoder of widths \[64, 64, 32\]; "
    with pytest.raises(ValueError, match=pattern + r"found TAESD with 4 latent channels and another layout\. Connect"):
        wrap(comfy, image_vae, name)
    with pytest.raises(ValueError, match=pattern + "found VideoAutoencoder with 4 latent channels and another layout"):
        wrap(comfy, toy.vae, name)
    full = tcm("full.safetensors", widths=(32, 64))[0]
    with pytest.raises(ValueError, match=r"decoder of widths \[64, 32\]; found AutoencoderKL .* widths \[64, 64, 32\]"):
        wrap(comfy, image, full)
    many = tcm("many.safetensors", latent_channels=16)[0]
    with pytest.raises(ValueError, match="with 16 latent channels .* found AutoencoderKL with 4 latent channels"):
        wrap(comfy, image, many)
    with pytest.raises(ValueError, match="has a temporal decoder already: connect the image VAE"):
        wrap(comfy, wrap(comfy, image, name), name)


def test_latents_that_do_not_fit(comfy, image, tcm, latents):
    vae = wrap(comfy, image, tcm()[0], frames=4)
    with pytest.raises(ValueError, match="The batch has 7 latents, which is no multiple of 4 frames: set Temporal VAE"):
        decoded(comfy, vae, latents)
    for node in ({}, {"tile_size": 64}):
        with pytest.raises(ValueError, match=r"latents with 4 channels, .* found \(2, 16, 3, 4, 4\)"):
            decoded(comfy, vae, torch.zeros(2, 16, 3, 4, 4), **node)


def test_files_that_hold_something_else(comfy, image):
    with pytest.raises(Exception, match="toy.safetensors has no temporal vae, it has: diffusion_model, .*vae"):
        comfy.ours("model_loaders.bridge.temporal_vae").temporal_vae(
            image, str(comfy.base / "models" / "checkpoints" / "toy.safetensors"), 0, 16
        )
