"""Save Long Video: parts of latents become one file, joined where they meet."""

import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

COLOURS = 3


@pytest.fixture(autouse=True)
def held_back(comfy, monkeypatch):
    """The nodes that are not offered yet, for these tests alone."""
    for node in getattr(comfy.ours("nodes.long_video"), "HELD_BACK", []):
        monkeypatch.setitem(comfy.mappings, node.define_schema().node_id, node)


@pytest.fixture
def video_file(comfy):
    return comfy.ours("model_loaders.bridge.video_file")


@pytest.fixture
def pixels(comfy):
    """A VAE that leaves pixels as they are."""
    return comfy.run("WeftFramewiseVAE", vae=comfy.run("VAELoader", vae_name="pixel_space")[0])[0]


def moving(frames, height=16, width=24):
    """Pixels (1, 3, T, H, W) in -1..1 whose grey rises evenly."""
    return torch.linspace(-0.9, 0.9, frames).view(1, 1, -1, 1, 1).expand(1, COLOURS, frames, height, width)


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.average_rate, stream.codec.name, dict(container.metadata)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize(("size", "overlap"), [(16, 4), (2, 1), (5, 4)])
def test_parts_cover_the_video(video_file, length, size, overlap):
    plan = video_file.parts(length, size, overlap)
    assert plan[0][0] == 0 and plan[-1][1] == length
    assert all(end - begin == min(size, length) for begin, end in plan)
    for (begin, end), (later, _) in zip(plan, plan[1:], strict=False):
        assert begin < later <= end - overlap


@pytest.mark.parametrize("length", [1, 4, 7, 16, 17, 29])
def test_frame_by_frame_the_parts_are_the_whole(video_file, pixels, length):
    video = moving(length)
    found = torch.cat(list(video_file.frames(pixels, video, video_file.Parts(7, 3))))
    torch.testing.assert_close(found, pixels.decode(video)[0], rtol=0, atol=1e-6)


def test_a_part_takes_over_from_the_one_before(video_file, toy):
    """LVDM's VAE sees 18 latents, so that a part's ends are others: what is shared goes from one to the other."""
    latents = torch.randn(1, 4, 8, 8, 8, generator=torch.manual_seed(0))
    found = torch.cat(list(video_file.frames(toy.vae, latents, video_file.Parts(5, 2))))
    first, second = (toy.vae.decode(latents[:, :, part])[0] for part in (slice(0, 5), slice(3, 8)))
    assert found.shape == (32, 64, 64, 3)
    torch.testing.assert_close(found[:12], first[:12], rtol=0, atol=0)
    torch.testing.assert_close(found[20:], second[8:], rtol=0, atol=0)
    for index in range(8):
        weight = (index + 1) / 9
        expected = (1 - weight) * first[12 + index] + weight * second[index]
        torch.testing.assert_close(found[12 + index], expected, rtol=0, atol=1e-6)
    assert (first[12:] - second[:8]).abs().mean() > 1e-3


@pytest.mark.parametrize(("size", "overlap"), [(5, 1), (16, 1)], ids=["two parts", "one part"])
def test_a_loop_blends_into_its_start(video_file, toy, size, overlap):
    """Its last part is also given the first latents, whose frames turn into those of the first part."""
    latents = torch.randn(1, 4, 7, 8, 8, generator=torch.manual_seed(0))
    found = torch.cat(list(video_file.frames(toy.vae, latents, video_file.Parts(size, overlap, loop=True))))
    around = torch.cat([latents, latents[:, :, :overlap]], dim=2)
    first, last = (toy.vae.decode(part)[0] for part in (around[:, :, :size], around[:, :, -size:]))
    assert found.shape == (28, 64, 64, 3)
    for index in range(4 * overlap):
        weight = (index + 1) / (4 * overlap + 1)
        expected = (1 - weight) * last[len(last) - 4 * overlap + index] + weight * first[index]
        torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-6)
    # The last frame is the one before what the last part shares with the start.
    torch.testing.assert_close(found[-1], last[len(last) - 4 * overlap - 1], rtol=0, atol=1e-6)


def test_a_causal_part_lacks_frames_at_its_start(video_file):
    """Of 4 frames of its first latent it has one: the three before are those of the part before."""

    class Causal:
        latent_dim, upscale_ratio = 3, (lambda count: 4 * count - 3, 1, 1)

        def decode(self, samples):
            values = samples[0, 0, :, 0, 0]
            frames = torch.cat([values[:1], values[1:].repeat_interleave(4)])
            return frames.view(1, -1, 1, 1, 1).expand(1, -1, 2, 2, 3)

    latents = torch.arange(12.0).view(1, 1, -1, 1, 1)
    found = torch.cat(list(video_file.frames(Causal(), latents, video_file.Parts(5, 2))))
    expected = [0.0] + [float(latent) for latent in range(1, 12) for _ in range(4)]
    assert found[:, 0, 0, 0].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="This VAE is causal, its first latent stands for fewer frames"):
        next(video_file.frames(Causal(), latents, video_file.Parts(5, 2, loop=True)))


def test_the_file_is_what_the_core_would_write(comfy, pixels):
    """One number per name, rate, codec, levels; no part is left over."""
    folder = comfy.base / "output" / "long"
    given = {"vae": pixels, "fps": 12.0, "filename_prefix": "long/toy", "part": 8, "overlap": 2}
    for _ in range(2):
        (video,) = comfy.run("WeftSaveLongVideo", samples={"samples": moving(20)}, **given)
    assert video.get_dimensions() == (24, 16) and video.get_components().images.shape == (20, 16, 24, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["toy_00001_.mp4", "toy_00002_.mp4"]
    frames, rate, codec, _ = read(folder / "toy_00002_.mp4")
    assert frames.shape == (20, 16, 24, 3) and rate == 12 and codec == "h264"
    expected = (pixels.decode(moving(20))[0, :, 0, 0, 0] * 255).byte().numpy()
    # Half the colours and compression move grey levels by up to three.
    assert abs(frames.mean((1, 2, 3)) - expected).max() < 3


def test_no_more_is_held_of_a_longer_video(comfy, pixels, monkeypatch):
    """Bytes of decoded frames that are still there whenever a part is decoded: those of the same two parts at most."""
    from torch.multiprocessing.reductions import StorageWeakRef

    decode, made = pixels.decode, []

    def held():
        return sum(size for weak, size in made if not weak.expired())

    def watched(samples):
        decoded = decode(samples)
        storage = decoded.untyped_storage()
        made.append((StorageWeakRef(storage), storage.nbytes()))
        most[-1] = max(most[-1], held())
        return decoded

    monkeypatch.setattr(pixels, "decode", watched)
    most = []
    for frames in (64, 1024):
        most.append(0)
        made.clear()
        given = {"vae": pixels, "filename_prefix": f"held/{frames}", "part": 16, "overlap": 4}
        comfy.run("WeftSaveLongVideo", samples={"samples": moving(frames)}, **given)
        assert len(made) == -(-(frames - 4) // 12) and held() == 0
    part = 16 * 16 * 24 * COLOURS * 4
    assert most[0] == most[1] == part


def test_the_graph_is_in_the_file(comfy, video_file, pixels, tmp_path):
    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
    path = tmp_path / "a.mp4"
    video_file.save(path, pixels, moving(4), video_file.Parts(4, 1), 8.0, video_file.metadata_of(hidden))
    metadata = read(path)[3]
    assert json.loads(metadata["prompt"]) == {"1": {}} and json.loads(metadata["workflow"]) == {"nodes": []}


def test_nothing_is_left_of_a_file_that_is_not_finished(comfy, video_file, pixels, tmp_path):
    from comfy.model_management import InterruptProcessingException

    def interrupted():
        yield pixels.decode(moving(4))[0]
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        video_file.write(tmp_path / "a.mp4", interrupted(), 8, 8.0, {})
    assert not list(tmp_path.iterdir())


def test_bad_input(comfy, pixels, image_vae):
    def save(samples, vae=pixels, **changed):
        comfy.run("WeftSaveLongVideo", samples={"samples": samples}, vae=vae, filename_prefix="bad/a", **changed)

    with pytest.raises(ValueError, match="part is 4 latents and overlap 4: parts share at least one.*take 1 to 3"):
        save(moving(4), part=4, overlap=4)
    with pytest.raises(ValueError, match="A loop of 3 latents cannot share 3 between its end and its start"):
        save(moving(3), part=4, overlap=3, loop=True)
    with pytest.raises(ValueError, match="This VAE decodes images: put Frame-wise VAE"):
        save(moving(4), vae=image_vae)
    with pytest.raises(ValueError, match="Found 2 videos, a file holds one"):
        save(moving(4).repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"Found a latent of shape \(3, 4, 4\), expected that of a video"):
        save(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"Frames are 23x16 \(width x height\), h264 takes even numbers"):
        save(moving(4, width=23))
    assert not list((comfy.base / "output" / "bad").glob("*"))
