"""Memory and time of Show-1's whole cascade at its official sizes: `python -m weft.benchmarks.cascade`.

The networks are drawn at random on the device, one stage after the other, and sampled as the release does with a few
steps. On the meta device nothing is computed: what would be alive is counted, as a GPU without workspaces has it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.layers.chunking import low_memory
from ..kernels.layers.operations import TorchOperations
from ..kernels.networks.higen import SpaceTimeUNet, SpaceTimeUNetConfig
from ..kernels.networks.show1 import PixelUNet, PixelUNetConfig
from ..kernels.sampling import cascade
from ..kernels.sampling.dpm_solver import DPMSolver, dpm_sigmas, dpm_timesteps
from ..kernels.sampling.schedules import NoiseSchedule, denoised_of
from ..model_loaders.show1 import SCHEDULES, UPSCALER_DIVISOR
from .cli import DTYPES, device_of, prepare
from .memory import peak_bytes
from .report import environment, table

SETTINGS = ("default", "low memory")
LIMITS = {"default": 15e9, "low memory": 8e9}
GUIDANCE = 4.0
NOISE_LEVEL = 250
TEXT_TOKENS = 77
T5_PARAMETERS = 4_762_310_656
"""Of the encoder that the stages on pixels share; ComfyUI's, and in memory before the stages, not beside them."""
HEADER = ("stage", "setting", "runs", "weights GB", "peak GB", "total GB", "reserved GB", "s/step", "(range)")
LEGEND = (
    "runs: windows of a stage; peak: most memory beyond the weights; total: with them; reserved: what torch's "
    "allocator held of the device; s/step: median of one step with guidance of one window, after a first run. "
    "low memory: both halves of guidance one after the other, parts of 16 MB (as ComfyUI does with --lowvram)."
)


class Counted(TorchOperations):
    """Layers of the meta device: attention takes what fused kernels take, its result."""

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Shapes as in `TorchOperations`."""
        return torch.empty_like(query)


@dataclass(frozen=True)
class Stage:
    """A network and the noise that one of its windows begins with: channels, frames, height, width."""

    name: str
    config: PixelUNetConfig | SpaceTimeUNetConfig
    shape: tuple[int, int, int, int]
    schedule: NoiseSchedule

    @property
    def text_width(self) -> int:
        """Width of the text encoder's tokens."""
        config = self.config
        return config.text_width if isinstance(config, PixelUNetConfig) else config.context_width


@dataclass
class Result:
    """What one stage needs with one setting; bytes and seconds.

    Attributes:
        runs: windows that were sampled.
        weights, peak: the network, and what was alive beside it at most.
        reserved: what the allocator of a GPU held at most, else 0.
        seconds: of every step of a second run; none on the meta device.
    """

    stage: str
    setting: str
    parameters: int
    runs: int
    weights: int
    peak: int
    reserved: int
    seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Weights and what is alive beside them."""
        return self.weights + self.peak


_BASE = PixelUNetConfig()
_UPSCALER = PixelUNetConfig(
    in_channels=6,
    model_channels=128,
    channel_mult=(1, 2, 4, 6, 6),
    num_res_blocks=(2, 2, 3, 4, 2),
    attention_factors=(8, 16),
    embedding_width=768,
    context_width=768,
    noise_levels=1000,
    residual_divisor=UPSCALER_DIVISOR,
)
_FIRST_FRAME = replace(
    _UPSCALER,
    model_channels=160,
    channel_mult=(1, 2, 4, 6, 8),
    num_res_blocks=(2, 2, 3, 5, 5),
    embedding_width=1280,
    context_width=1280,
    temporal=False,
)
_LATENTS = NoiseSchedule(0.00085, 0.012, eta=0.0)


def _tiny(config: PixelUNetConfig) -> PixelUNetConfig:
    sizes = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": (1, 1), "attention_factors": (2,)}
    widths = {"embedding_width": 32, "text_width": 32, "context_width": 32, "pooling_heads": 4}
    return replace(config, **sizes, **widths, head_width=16, temporal_heads=4)  # type: ignore[arg-type]


def stages(size: str) -> tuple[Stage, ...]:
    """The cascade: 8 keyframes, 29 frames, four times the size, and latents of the last size."""
    if size == "official":
        latents: SpaceTimeUNetConfig = SpaceTimeUNetConfig()
        base, upscaler, first = _BASE, _UPSCALER, _FIRST_FRAME
        height, width, keyframes, last = 40, 64, 8, (29, 40, 72)
    else:
        latents = SpaceTimeUNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(1,))
        latents = replace(latents, head_width=16, stem_heads=2, context_width=32)
        base, upscaler, first = _tiny(_BASE), _tiny(_UPSCALER), _tiny(_FIRST_FRAME)
        height, width, keyframes, last = 4, 8, 2, (5, 4, 8)
    frames = cascade.KEYFRAME_DISTANCE * (keyframes - 1) + 1
    window, large = min(cascade.WINDOW, frames), (cascade.UPSCALING * height, cascade.UPSCALING * width)
    between = replace(base, in_channels=7)
    return (
        Stage("keyframes", base, (3, keyframes, height, width), SCHEDULES["base"]),
        Stage("interpolation", between, (3, cascade.KEYFRAME_DISTANCE + 1, height, width), SCHEDULES["interpolation"]),
        Stage("first frame", first, (3, 1, *large), SCHEDULES["first frame"]),
        Stage("sr1", upscaler, (3, window, *large), SCHEDULES["sr1"]),
        Stage("sr2", latents, (4, *last), _LATENTS),
    )


def drawn(stage: Stage, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network of a stage with random weights, made on the device, that keep the scale of what they work on."""
    network_type: type[nn.Module] = PixelUNet if isinstance(stage.config, PixelUNetConfig) else SpaceTimeUNet
    operations = Counted if device.type == "meta" else TorchOperations
    network = network_type(stage.config, dtype=dtype, device="meta", operations=operations).eval()  # type: ignore[call-arg]
    if device.type == "meta":
        return network
    network.to_empty(device=device)
    for name, weight in network.named_parameters():
        weight.normal_().mul_(0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
        if weight.ndim == 1 and name.endswith("weight"):
            weight.add_(1)
    return network


class Walk:
    """A sampling of a stage: DPM-Solver++ with guidance over random text; notes how long every step takes."""

    def __init__(self, stage: Stage, network: nn.Module, low: bool, steps: int) -> None:
        weight = next(network.parameters())
        self.stage, self.network, self.low, self.steps = stage, network, low, steps
        self.device, self.dtype = weight.device, weight.dtype
        self.counted = self.device.type == "meta"
        self.text = torch.randn(2, TEXT_TOKENS, stage.text_width, device=self.device, dtype=self.dtype)
        self.seconds: list[float] = []
        self.runs = 0

    def __call__(self, noise: Tensor, given: Tensor | None = None) -> Tensor:
        """Noise (B, C, T, H, W), what the network is given beside it -> a sample of its shape."""
        self.runs += 1
        if self.counted and self.runs > 1:
            return noise  # windows are alike
        schedule = self.stage.schedule
        sigmas, times = dpm_sigmas(schedule, self.steps), dpm_timesteps(schedule, self.steps).tolist()
        solver = DPMSolver(float(sigmas[-1]), self.steps, getattr(self.stage.config, "threshold", 0.0))
        x = noise * float((1 + sigmas[0] ** 2).sqrt())
        for timestep, sigma, sigma_next in zip(times, sigmas, sigmas[1:], strict=False):
            start = self._clock()
            seen = x / float((1 + sigma**2).sqrt())
            prediction = self._guided(seen if given is None else torch.cat([seen, given], 1), timestep)
            denoised = denoised_of(schedule, x, sigma.float(), prediction[:, : x.shape[1]].float())
            x = solver(x, denoised, sigma, sigma_next)
            self.seconds.append(self._clock() - start)
        return x

    def _guided(self, seen: Tensor, timestep: int) -> Tensor:
        """What is predicted with text and without, in one call or two, then mixed."""
        seen = seen.to(self.dtype)
        calls = [self._call(seen, half, timestep) for half in self.text.split(1)] if self.low else None
        if calls is None:
            calls = list(self._call(seen.repeat(2, 1, 1, 1, 1), self.text, timestep).chunk(2))
        with_text, without = calls
        return without + GUIDANCE * (with_text - without)

    def _call(self, seen: Tensor, text: Tensor, timestep: int) -> Tensor:
        times = torch.full((len(seen),), timestep, device=self.device)
        level = {"noise_level": torch.full_like(times, NOISE_LEVEL)} if self.levels else {}
        predicted: Tensor = self.network(seen, times, text, **level)
        return predicted

    @property
    def levels(self) -> int:
        """Levels of the noise on what is given that the network knows."""
        return getattr(self.stage.config, "noise_levels", 0)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run(walk: Walk, video: Tensor, first: Tensor | None) -> Tensor:
    """What a stage makes of the video (1, 3, T, H, W) before it, in its windows; `first`: the large first frame."""
    stage = walk.stage
    noise = torch.randn(1, *stage.shape, device=video.device)
    if stage.name == "interpolation":
        return cascade.interpolate(video, noise, lambda start, *given: walk(start, torch.cat(given, 1)))
    if stage.name == "first frame":
        return walk(noise, cascade.noised(cascade.enlarged(video[:, :, :1]), NOISE_LEVEL, torch.randn_like(noise)))[
            :, :, 0
        ]
    if stage.name == "sr1":
        return cascade.super_resolve(video, noise, torch.randn_like(noise), walk, level=NOISE_LEVEL, first=first)
    return walk(noise)


@torch.no_grad()
def measure(
    size: str, setting: str, device: torch.device, dtype: torch.dtype, steps: int, say: Callable[[Result], object]
) -> Tensor:
    """Run the cascade once, hand the result of every stage on, and return the latents of the last (1, 4, T, h, w)."""
    low = setting == SETTINGS[1]
    video, first = torch.empty(0, device=device), None
    with low_memory(low):
        for stage in stages(size):
            walk = Walk(stage, drawn(stage, device, dtype), low, steps)
            made, result = _measured(walk, setting, video, first)
            say(result)
            if stage.name == "first frame":
                first = made
            else:
                video = made
            del walk
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return video


def _measured(walk: Walk, setting: str, video: Tensor, first: Tensor | None) -> tuple[Tensor, Result]:
    """What a stage makes; its memory in a first run, which also warms up, and the times of a second one."""
    device, made = video.device, []
    peak = peak_bytes(lambda: made.append(run(walk, video, first)), device)
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    runs, walk.seconds = walk.runs, []
    if not walk.counted:
        run(walk, video, first)
    weights = list(walk.network.parameters())
    parameters, size = (sum(values) for values in zip(*((part.numel(), part.nbytes) for part in weights), strict=True))
    return made[0], Result(walk.stage.name, setting, parameters, runs, size, peak, reserved, walk.seconds)


def row(result: Result) -> tuple[str, ...]:
    """A line of the table, in the order of `HEADER`."""
    seconds = result.seconds
    return (
        result.stage,
        result.setting,
        str(result.runs),
        *(f"{size / 1e9:.3f}" for size in (result.weights, result.peak, result.total)),
        f"{result.reserved / 1e9:.3f}" if result.reserved else "-",
        f"{statistics.median(seconds):.4f}" if seconds else "-",
        f"{min(seconds):.4f}-{max(seconds):.4f}" if seconds else "-",
    )


def verdicts(results: Sequence[Result]) -> list[str]:
    """Whether each setting stays below its limit, in words, with the text encoder, which is measured nowhere."""
    lines = []
    for setting, limit in LIMITS.items():
        largest = max((result for result in results if result.setting == setting), key=lambda result: result.total)
        total, below = largest.total / 1e9, "below" if largest.total < limit else "ABOVE"
        lines.append(f"{setting}: at most {total:.2f} GB ({largest.stage}), {below} {limit / 1e9:g} GB.")
    t5 = T5_PARAMETERS / 1e9
    lines.append(
        f"Not measured: T5, which is in memory before the stages and not beside them, {t5:.2f} billion weights: "
        f"{2 * t5:.2f} GB in half precision, {t5:.2f} GB in eight bits; ComfyUI's --lowvram puts it on the CPU."
    )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both settings; returns 1 where a GPU, or the count, is above the limit of a setting."""
    options = _parse(arguments)
    device = options.device
    where = environment(device) | {"cuda": torch.version.cuda if device.type == "cuda" else None}
    if device.type == "meta":
        where["device"] = "none: counted"
    chosen = {"size": options.size, "dtype": options.dtype, "steps": options.steps}
    conditions = ", ".join(f"{key} {value}" for key, value in {**chosen, **where}.items())
    print(conditions, flush=True)
    results: list[Result] = []

    def say(result: Result) -> None:
        results.append(result)
        print(f"{result.stage}, {result.setting}: {result.total / 1e9:.3f} GB", flush=True)

    for setting in SETTINGS:
        measure(options.size, setting, device, DTYPES[options.dtype], options.steps, say)
    found, explained = table([row(result) for result in results], HEADER), [*verdicts(results), LEGEND]
    print("\n".join([found, *explained]))
    if options.json:
        rows = [asdict(result) | {"total": result.total} for result in results]
        content = json.dumps({"environment": where, "settings": chosen, "rows": rows}, indent=1)
        options.json.write_text(content + "\n", encoding="utf-8")
        page = "\n\n".join([conditions, f"```\n{found}\n```", *explained])
        options.json.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    return int(any(result.total >= LIMITS[result.setting] for result in results))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m weft.benchmarks.cascade",
        description="Memory and time of Show-1's cascade, every stage with random weights of the released sizes.",
    )
    parser.add_argument(
        "--device",
        type=lambda text: torch.device(text) if text == "meta" else device_of(text),
        default=torch.device("cuda" if cuda else "cpu"),
        help="cpu, cuda or cuda:N, by default a GPU where there is one; meta: count at official sizes without one",
    )
    parser.add_argument("--size", choices=("tiny", "official"), help="official by default, but tiny on a CPU")
    parser.add_argument("--dtype", choices=DTYPES, help="float16 by default, but float32 on a CPU")
    parser.add_argument("--steps", type=int, default=3, help="steps of every window")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here, and the table beside")
    options = parser.parse_args(arguments)
    on_cpu = options.device.type == "cpu"
    options.size = options.size or ("tiny" if on_cpu else "official")
    options.dtype = options.dtype or ("float32" if on_cpu else "float16")
    if not 1 <= options.steps <= 100:
        parser.error(f"--steps is {options.steps}, expected 1 to 100")
    if options.json:
        prepare(options.json, parser)
    return options


if __name__ == "__main__":
    sys.exit(main())
