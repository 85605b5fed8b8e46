"""Benchmarks: the peers are the released composition, the counters count, and unequal outputs are refused."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weft.benchmarks import cli, lvdm
from weft.benchmarks.case import SIZES
from weft.benchmarks.measure import OURS, OutputsDifferError, contenders, count, measure, random_weights
from weft.benchmarks.memory import LiveTensors, peak_bytes
from weft.benchmarks.peers.lvdm import UNet
from weft.benchmarks.peers.lvdm_autoencoder import Autoencoder
from weft.benchmarks.registry import CASES
from weft.kernels.networks.lvdm import LatentVideoUNet, LatentVideoUNetConfig, TextToVideoUNet, TextToVideoUNetConfig
from weft.kernels.networks.video_autoencoder import VideoAutoencoderConfig
from weft.model_loaders.keymap import strip_prefix
from weft.model_loaders.lvdm import UNET_KEYS

# Of the output's standard deviation: rounding in float32.
TOLERANCE = 3e-5
CPU = torch.device("cpu")
QUICK = "lvdm-ae-encode"
PREDICTION = LatentVideoUNetConfig(in_channels=5, noise_levels=251)


class TestPeers:
    """An independent reading of the released models."""

    @pytest.mark.parametrize(
        ("name", "build", "prefix"),
        [
            ("short_uncond", lambda: UNet(LatentVideoUNetConfig()), "model.diffusion_model."),
            ("long_pred", lambda: UNet(PREDICTION), "model.diffusion_model."),
            ("text2video", lambda: UNet(TextToVideoUNetConfig()), "model.diffusion_model."),
            ("video_ae", lambda: Autoencoder(VideoAutoencoderConfig()), ""),
        ],
    )
    def test_tensors_are_those_of_the_released_file(self, manifest, name, build, prefix):
        with torch.device("meta"):
            found = {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}
        released = {key: tuple(tensor.shape) for key, tensor in strip_prefix(manifest(name), prefix).items()}
        # The autoencoder's file also holds its training losses, and the weights of convolutions a second time.
        doubles = {key.replace(".conv.weight", ".weight") for key in released if key.endswith(".conv.weight")}
        extra = {key for key in released if key.startswith("loss.") or (name == "video_ae" and key in doubles)}
        assert found == {key: shape for key, shape in released.items() if key not in extra}

    @pytest.mark.parametrize("fused", [True, False])
    @torch.no_grad()
    def test_released_numbers_of_the_denoiser(self, parity, relative_error, released, fused):
        _, tensors = parity("unet_mask_cond")
        config = dataclasses.replace(released.prediction, num_heads=2)
        peer = UNet(config, fused=fused)
        peer.load_state_dict(strip_prefix(tensors, "w."))
        x, timesteps, level = tensors["unet_input"], tensors["timesteps"], tensors["noise_level"]
        assert relative_error(peer(x, timesteps, noise_level=level), tensors["out_cond"]) < TOLERANCE
        assert relative_error(peer(x, timesteps), tensors["out_cond_without_level"]) < TOLERANCE

    @torch.no_grad()
    def test_released_numbers_of_the_autoencoder(self, parity, relative_error, released):
        peer = Autoencoder(released.autoencoder)
        _, encoder = parity("ae_encoder")
        _, decoder = parity("ae_decoder")
        peer.load_state_dict(strip_prefix({**encoder, **decoder}, "w."))
        assert relative_error(peer.encode(encoder["x"]), encoder["posterior_mean"]) < TOLERANCE
        assert relative_error(peer.decode(decoder["z"]), decoder["y"]) < TOLERANCE


class TestOursEqualsPeer:
    @pytest.mark.parametrize("level", [None, torch.tensor([0, 250])])
    @torch.no_grad()
    def test_latent_video_unet(self, relative_error, level):
        config = dataclasses.replace(PREDICTION, model_channels=32, num_res_blocks=1, temporal_length=2)
        ours, peer = pair(LatentVideoUNet(config), UNet(config))
        x, timesteps = torch.randn(2, 5, 4, 16, 16), torch.tensor([0, 999])
        found = ours(x, timesteps, noise_level=level)
        assert relative_error(found, peer(x, timesteps, noise_level=level)) < TOLERANCE

    @pytest.mark.parametrize(("length", "depth", "fused"), [(3, 1, True), (16, 2, False)])
    @torch.no_grad()
    def test_text_to_video_unet(self, relative_error, length, depth, fused):
        config = TextToVideoUNetConfig(
            model_channels=32, num_res_blocks=1, context_width=24, temporal_length=length, depth=depth
        )
        ours, peer = pair(TextToVideoUNet(config), UNet(config, fused=fused))
        inputs = torch.randn(2, 4, 6, 16, 16), torch.tensor([3, 700]), torch.randn(2, 7, 24)
        assert relative_error(ours(*inputs), peer(*inputs)) < TOLERANCE

    @pytest.mark.parametrize("name", CASES)
    @torch.no_grad()
    def test_cases_on_two_videos(self, relative_error, name):
        torch.manual_seed(0)
        calls = contenders(CASES[name], "tiny", CPU, torch.float32)
        inputs = CASES[name].inputs("tiny", 2)
        expected = calls.pop(next(iter(CASES[name].peers)))(*inputs)
        assert OURS in calls
        for call in calls.values():
            assert relative_error(call(*inputs), expected) < TOLERANCE


def pair(ours: nn.Module, peer: nn.Module) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    tensors = random_weights(peer, CPU, torch.float32)
    peer.load_state_dict(tensors)
    ours.load_state_dict(UNET_KEYS(tensors))
    return ours, peer


class TestMemory:
    SIZE = 4096 * 4

    @pytest.mark.parametrize(
        ("function", "tensors"),
        [
            (lambda x: x + 1, 1),
            (lambda x: x.add_(1), 0),
            (lambda x: x.view(64, 64).t()[3:], 0),
            (lambda x: torch.relu(torch.relu(torch.relu(x))), 2),
            (lambda x: torch.cat([x, x + 1]), 3),
            (lambda x: [torch.relu(x) for _ in range(3)], 3),
            (lambda x: torch.relu(x).add_(torch.relu(x)), 2),
            (lambda x: sum(torch.relu(part).sum() for part in x.split(1024)), 0.25),
            (lambda x: F.linear(x.view(64, 64), x.view(64, 64)), 1),
        ],
    )
    @torch.no_grad()
    def test_peak(self, function, tensors):
        x = torch.randn(4096)
        # Scalars of a sum may add a few bytes.
        assert 0 <= peak_bytes(lambda: function(x), CPU) - tensors * self.SIZE < 64

    @torch.no_grad()
    def test_everything_is_given_back(self):
        x = torch.randn(4096)
        with LiveTensors() as tracker:
            y = F.softmax(x.view(64, 64) @ x.view(64, 64), dim=-1)
            assert tracker.live == self.SIZE
            del y
        assert tracker.live == 0

    @torch.no_grad()
    def test_operations_without_views(self):
        with LiveTensors() as tracker:
            torch.zeros(4, 4).t().reshape(16).add_(1).view(2, 8).unbind()
        # The zeros, the copy that reshape makes of a transposed matrix, the sum.
        assert tracker.operations == 3


class TestWork:
    @pytest.mark.parametrize(
        ("call", "flops"),
        [
            (lambda: F.linear(torch.ones(3, 5, 7), torch.ones(11, 7), torch.ones(11)), 2 * 15 * 7 * 11),
            (lambda: F.conv2d(torch.ones(2, 4, 8, 8), torch.ones(6, 4, 3, 3), padding=1), 2 * 2 * 64 * 6 * 4 * 9),
            (lambda: F.scaled_dot_product_attention(*(torch.ones(2, 3, 16, 8),) * 3), 2 * 2 * 2 * 3 * 16 * 16 * 8),
        ],
    )
    @torch.no_grad()
    def test_flops(self, call, flops):
        assert count(call)[1] == flops

    @torch.no_grad()
    def test_flops_of_the_autoencoder(self):
        """Multiplications by hand: 3 channels on 8x64x64 -> 16 -> 32 on 4x32x32 -> 64 on 4x16x16 -> 8 moments."""
        config = lvdm.AUTOENCODER["tiny"]
        assert (config.n_hiddens, config.downsample, lvdm.SHAPE_A["tiny"]) == (16, (2, 4, 4), (4, 16, 16))
        first = 27 * 3 * 16 * 8 * 64 * 64
        stage1 = (64 * 16 * 32 + 2 * 27 * 32 * 32) * 4 * 32 * 32
        stage2 = (64 * 32 * 64 + 2 * 27 * 64 * 64) * 4 * 16 * 16
        last = (27 * 64 * 8 + 8 * 8) * 4 * 16 * 16
        measured = measure(CASES[QUICK], "tiny", repeat=1)
        assert [result.flops for result in measured] == [2 * (first + stage1 + stage2 + last)] * 2


@pytest.mark.parametrize("name", CASES)
def test_quarter_is_half_as_wide(name):
    parameters = {}
    for size in SIZES:
        with torch.device("meta"):
            network = CASES[name].ours(size)
        parameters[size] = sum(tensor.numel() for tensor in network.parameters())
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert all(norm.num_channels % 32 == 0 for norm in norms)
    assert 2 * CASES[name].width("quarter") == CASES[name].width("official")
    assert parameters["quarter"] / parameters["official"] == pytest.approx(0.25, abs=0.01)


def test_json_and_table(tmp_path, capsys):
    file = tmp_path / "results" / "benchmark.json"
    assert cli.main([QUICK, "--repeat", "3", "--threads", "1", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    environment = written["environment"]
    assert environment["torch"] == torch.__version__ and environment["threads"] == 1
    assert all(environment[key] for key in ("device", "cpu", "python", "date", "revision"))
    ours, peer = written["rows"]
    assert (ours["contender"], peer["contender"], peer["error"]) == (OURS, "plain", 0.0)
    assert (ours["case"], ours["size"], ours["batch"], ours["dtype"]) == (QUICK, "tiny", 1, "float32")
    assert len(ours["seconds"]) == len(ours["cpu_seconds"]) == 3
    assert ours["speed"] == pytest.approx(sorted(peer["seconds"])[1] / sorted(ours["seconds"])[1])
    assert ours["speed_range"][0] <= ours["speed_range"][1] and peer["speed_range"] == [1.0, 1.0]
    assert ours["memory"] == pytest.approx(ours["peak_bytes"] / peer["peak_bytes"])
    assert ours["peak_values"] == pytest.approx(ours["peak_bytes"] / 4 / (8 * 64 * 64 * 16))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [[QUICK, OURS], [QUICK, "plain"]]
    page = [line for line in file.with_suffix(".md").read_text().splitlines() if line and line != "```"]
    assert page == lines


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_unequal_outputs_are_refused(monkeypatch, capsys, value):
    def disturbed(tensors):
        return {name: t + value if name == "quant_conv.bias" else t for name, t in CASES[QUICK].keys(tensors).items()}

    case = dataclasses.replace(CASES[QUICK], keys=disturbed)
    with pytest.raises(OutputsDifferError, match="nothing is reported"):
        measure(case, "tiny", repeat=1)
    monkeypatch.setattr(cli, "CASES", {QUICK: case})
    assert cli.main(["--repeat", "1"]) == 1
    printed = capsys.readouterr()
    assert "`ours` differs" in printed.err and OURS not in printed.out.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lvdm-unet-c"], "unknown case lvdm-unet-c, expected one of lvdm-unet-a"),
        (["--repeat", "0"], "--repeat and --threads must be at least 1"),
        (["--threads", "-1"], "must be at least 1"),
        (["--threads", "0"], "must be at least 1"),
        (["--device", "foo"], "'foo' is none of cpu, cuda and cuda:N"),
        (["--device", "mps"], "'mps' is none of"),
        (["--device", "meta"], "'meta' is none of"),
        (["--device", "cuda:99"], "CUDA devices here"),
        (["--json", "results.md"], "expected a name that ends in .json"),
        (["--json", f"{__file__}/a.json"], "cannot be written"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err
