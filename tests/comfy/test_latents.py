"""Empty latents, live previews and VAE objects by the stock nodes."""

import pytest
import torch

# Empty Video Latent


def test_empty_latent_has_the_models_size(comfy, toy):
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=96, height=64, frames=24, batch_size=2)[0]
    assert latent["samples"].shape == (2, 4, 6, 8, 12) and not latent["samples"].any()
    assert (latent["downscale_ratio_spacial"], latent["downscale_ratio_temporal"]) == (8, 4)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"frames": 15}, r"frames is 15, this model takes multiples of 4: choose 12 or 16\."),
        ({"frames": 2}, r"frames is 2, this model takes multiples of 4: choose 4\."),
        ({"frames": 0}, r"frames is 0, this model takes multiples of 4: choose 4\."),
        ({"width": 70}, r"width is 70, this model takes multiples of 8: choose 64 or 72\."),
        ({"height": 4}, r"height is 4, this model takes multiples of 8: choose 8\."),
    ],
)
def test_sizes_the_model_cannot_take_are_refused(comfy, toy, size, message):
    with pytest.raises(ValueError, match=message):
        comfy.run("WeftEmptyVideoLatent", model=toy.model, **{"width": 64, "height": 64, "frames": 16, **size})


@pytest.mark.parametrize("size", [(8, 8, 8), (24, 40, 12), (64, 64, 16)])
def test_every_size_it_allows_can_be_sampled(comfy, toy, sample, size):
    """Odd latent sizes included: the network halves them and doubles them again."""
    width, height, frames = size
    latent = comfy.run("WeftEmptyVideoLatent", model=toy.model, width=width, height=height, frames=frames)[0]
    out = sample(latent_image=latent, steps=1)
    assert out.shape == latent["samples"].shape and out.isfinite().all()


# Previews


@pytest.mark.parametrize(("frames", "grid"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (5, (2, 3)), (16, (4, 4))])
def test_preview_is_a_contact_sheet_of_all_frames(comfy, toy, monkeypatch, frames, grid):
    import latent_preview

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(torch.device("cpu"), toy.model.model.latent_format)
    video = torch.zeros(1, 4, frames, 8, 6)
    video[:, 0] = torch.linspace(-1, 1, frames)[:, None, None] if frames > 1 else 1.0
    image = previewer.decode_latent_to_preview(video)
    rows, columns = grid
    assert image.size == (columns * 6, rows * 8)
    reds = [image.getpixel((6 * (i % columns) + 3, 8 * (i // columns) + 4))[0] for i in range(frames)]
    assert reds == sorted(reds) and reds[-1] == 255
    assert frames == 1 or reds[0] == 0


def test_preview_during_sampling(comfy, toy, sample, monkeypatch):
    import latent_preview
    from comfy.utils import set_progress_bar_global_hook

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    seen = []
    set_progress_bar_global_hook(lambda value, total, preview, **_: seen.append(preview))
    try:
        sample(steps=2)
    finally:
        set_progress_bar_global_hook(None)
    assert [preview[1].size for preview in seen if preview] == [(16, 16)] * 2


# The 3D autoencoder


@pytest.fixture
def clip():
    """16 frames of 64 x 48 in 0..1, as IMAGE."""
    return torch.rand(16, 64, 48, 3, generator=torch.manual_seed(0))


def test_video_vae_encodes_and_decodes(comfy, toy, clip):
    latent = comfy.run("VAEEncode", pixels=clip, vae=toy.vae)[0]
    assert latent["samples"].shape == (1, 4, 4, 8, 6) and latent["samples"].isfinite().all()
    images = comfy.run("VAEDecode", samples=latent, vae=toy.vae)[0]
    assert images.shape == clip.shape
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_video_vae_is_the_network(comfy, toy, toy_models, clip):
    """ComfyUI's object adds the pixel range and nothing else."""
    from weft.model_loaders.checkpoint import read

    network = read(toy_models / "toy.safetensors").component("vae").build(dtype=torch.float32)
    pixels = clip.movedim(-1, 0)[None] * 2 - 1
    latent = network.encode(pixels)
    assert torch.allclose(comfy.run("VAEEncode", pixels=clip, vae=toy.vae)[0]["samples"], latent, atol=1e-5)
    expected = ((network.decode(latent) + 1) / 2).clamp(0, 1)[0].movedim(0, -1)
    found = comfy.run("VAEDecode", samples={"samples": latent}, vae=toy.vae)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_video_vae_in_tiles(comfy, toy, clip):
    tiles = {"tile_size": 64, "overlap": 32, "temporal_size": 8, "temporal_overlap": 4}
    wide = torch.cat([clip, clip], dim=2)
    latent = comfy.run("VAEEncodeTiled", pixels=wide, vae=toy.vae, **tiles)[0]
    assert latent["samples"].shape == (1, 4, 4, 8, 12) and latent["samples"].isfinite().all()
    images = comfy.run("VAEDecodeTiled", samples=latent, vae=toy.vae, **tiles)[0]
    assert images.shape == wide.shape and images.min() >= 0 and images.max() <= 1


def test_one_tile_is_the_whole(comfy, toy):
    latent = {"samples": torch.randn(1, 4, 4, 8, 8, generator=torch.manual_seed(1))}
    whole = comfy.run("VAEDecode", samples=latent, vae=toy.vae)[0]
    assert torch.allclose(comfy.run("VAEDecodeTiled", samples=latent, vae=toy.vae)[0], whole, atol=1e-5)


def test_videos_of_a_batch_follow_each_other(comfy, toy):
    latent = torch.randn(2, 4, 2, 8, 8, generator=torch.manual_seed(1))
    both = comfy.run("VAEDecode", samples={"samples": latent}, vae=toy.vae)[0]
    second = comfy.run("VAEDecode", samples={"samples": latent[1:]}, vae=toy.vae)[0]
    assert both.shape[0] == 16 and torch.allclose(both[8:], second, atol=1e-5)


def test_frames_beyond_the_last_whole_latent_are_cut_and_named(comfy, toy, clip, caplog):
    assert comfy.run("VAEEncode", pixels=clip[:10], vae=toy.vae)[0]["samples"].shape[2] == 2
    assert "10 frames were cut to 8" in caplog.text
    with pytest.raises(ValueError, match="4 frames of 8 x 8 pixels into one latent, found 3 frames of"):
        comfy.run("VAEEncode", pixels=clip[:3], vae=toy.vae)


def test_clips_of_a_batch_are_encoded_one_by_one(comfy, toy, clip):
    both = toy.vae.encode(torch.stack([clip[:12], clip[4:]]))
    alone = comfy.run("VAEEncode", pixels=clip[4:], vae=toy.vae)[0]["samples"]
    assert both.shape == (2, 4, 3, 8, 6) and torch.allclose(both[1:], alone, atol=1e-5)


def test_latents_of_other_models_are_refused(comfy, toy):
    for shape in ((1, 4, 8, 8), (1, 16, 4, 8, 8)):
        for node in ("VAEDecode", "VAEDecodeTiled"):
            with pytest.raises(ValueError, match=r"latents of videos \(batch, 4, frames.* found \(1, "):
                comfy.run(node, samples={"samples": torch.zeros(shape)}, vae=toy.vae)


# Image VAEs for videos


@pytest.fixture
def pixel_space(comfy):
    """ComfyUI's VAE that does nothing."""
    return comfy.run("VAELoader", vae_name="pixel_space")[0]


def test_video_vae_has_everything_that_comfyuis_own_sets(toy, image_vae):
    """Its constructor is not called, so a newer ComfyUI may come to expect more."""
    assert not vars(image_vae).keys() - vars(toy.vae).keys()


def test_pixel_space_round_trip_is_exact(comfy, pixel_space, clip):
    vae = comfy.run("WeftFramewiseVAE", vae=pixel_space)[0]
    latent = comfy.run("VAEEncode", pixels=clip, vae=vae)[0]
    assert latent["samples"].shape == (1, 3, 16, 64, 48)
    images = comfy.run("VAEDecode", samples=latent, vae=vae)[0]
    # x * 2 - 1 and back, in float32
    assert images.shape == clip.shape and torch.allclose(images, clip, atol=1e-6)


def test_framewise_is_frame_by_frame(comfy, image_vae, clip):
    vae = comfy.run("WeftFramewiseVAE", vae=image_vae)[0]
    latent = comfy.run("VAEEncode", pixels=clip, vae=vae)[0]
    single = comfy.run("VAEEncode", pixels=clip[5:6], vae=image_vae)[0]
    assert latent["samples"].shape == (1, 4, 16, 8, 6)
    assert torch.allclose(latent["samples"][:, :, 5], single["samples"], atol=1e-5)
    images = comfy.run("VAEDecode", samples=latent, vae=vae)[0]
    image = comfy.run("VAEDecode", samples=single, vae=image_vae)[0]
    assert images.shape == clip.shape and torch.allclose(images[5:6], image, atol=1e-4)


def test_framewise_keeps_videos_of_a_batch_apart(comfy, image_vae):
    vae = comfy.run("WeftFramewiseVAE", vae=image_vae)[0]
    latent = torch.randn(2, 4, 3, 4, 4, generator=torch.manual_seed(0))
    both = comfy.run("VAEDecode", samples={"samples": latent}, vae=vae)[0]
    second = comfy.run("VAEDecode", samples={"samples": latent[1:]}, vae=vae)[0]
    assert both.shape == (6, 32, 32, 3) and torch.allclose(both[3:], second, atol=1e-4)


def test_framewise_in_tiles(comfy, image_vae, clip):
    vae = comfy.run("WeftFramewiseVAE", vae=image_vae)[0]
    latent = comfy.run("VAEEncodeTiled", pixels=clip[:4], vae=vae, tile_size=64, overlap=16)[0]
    assert latent["samples"].shape == (1, 4, 4, 8, 6)
    images = comfy.run("VAEDecodeTiled", samples=latent, vae=vae, tile_size=64, overlap=16)[0]
    assert images.shape == (4, 64, 48, 3) and images.isfinite().all()


def test_framewise_refuses_a_video_vae(comfy, toy):
    with pytest.raises(ValueError, match="has 3D latents, expected an image VAE .*connect it directly"):
        comfy.run("WeftFramewiseVAE", vae=toy.vae)
