"""HARIVO's parts switched on one after the other, trained and sampled alike, and what each does to the videos.

As Table A2 of the paper, on Moving Shapes. What is finished is not made again: an interrupted ablation goes on where it
was, and more seeds are added to those that are there.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoints
from .build import resume, start
from .config import HarivoRecipe, override, read_recipe
from .data.moving_shapes import held_out_captions
from .distance import FrechetMeter
from .evaluate import evaluate_folder
from .revision import git_revision
from .sample import Sampler, write_samples
from .sections import MovingShapesData
from .settings import InputError, Table, to_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What a variant has more than the one before it.

    Attributes:
        name: of its folders.
        title: of its line in the table.
        without: settings of variants that lack it.
        trained: whether it is trained; else it is another way to sample the variant before it.
    """

    name: str
    title: str
    without: tuple[str, ...] = ()
    trained: bool = True


PARTS = (
    Part("baseline", "motion modules"),
    Part("losses", "+ L_TRS and L_DC", ("losses.attention=0", "losses.contrast=0")),
    # L_reg is there for the mapping network, which its image branch contains.
    Part("mapping", "+ mapping network, with L_reg", ("network.mapping=false", "losses.image=0")),
    Part("tokens", "+ frame tokens", ("network.frame_tokens=0", "losses.tokens_first=0")),
    Part("mitigating", "+ mitigating-gradient sampling", trained=False),
)
MEASURES = (
    ("frechet", "Fréchet distance", 1.0, 2),
    ("flicker", "flicker", 1.0, 3),
    ("colour", "colour %", 100.0, 1),
    ("shape", "shape %", 100.0, 1),
    ("direction", "direction %", 100.0, 1),
    ("background", "background %", 100.0, 1),
)
"""Name in scores, name in the table, factor and digits there."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How every variant is sampled.

    Attributes:
        count: held-out captions.
        steps: of DDIM.
        guidance: its scale.
        alpha: of the last variant, per element.
    """

    count: int
    steps: int
    guidance: float
    alpha: float


class Ablation:
    """All variants of a recipe, in a folder."""

    def __init__(
        self, table: Table, name: str, folder: Path, steps: int | None, sampling: Sampling, device: torch.device
    ) -> None:
        """
        Args:
            table: of the recipe in which all parts are on.
            name: of the recipe in errors and in the result.
            folder: for runs, videos and the result.
            steps: in which every variant learns from clips; None: as many as the recipe has.
            sampling: of the videos that are measured.
            device: for all networks but that of the distance.

        Raises InputError for a recipe that is none of HARIVO's or lacks a part, or clips that cannot be measured.
        """
        full = read_recipe(copy.deepcopy(table), name)
        if not isinstance(full, HarivoRecipe):
            raise InputError(f"{name}: a recipe of {full.task}, expected harivo")
        self.table, self.name, self.folder, self.full = table, name, folder, full
        self.steps = steps or full.run.steps - full.losses.tokens_first
        self.sampling, self.device = sampling, device
        self.captions = held_out_captions(sampling.count, 0)
        self.meter = FrechetMeter()
        self._check()

    def run(self, seeds: int) -> int | None:
        """Make what is missing for so many seeds and write the tables; returns the signal that ended it early."""
        rows: list[Row] = []
        for seed in range(seeds):
            for number, part in enumerate(PARTS):
                recipe = self.recipe(number, seed)
                run = self.folder / "runs" / f"{_trained(number).name}-{seed}"
                if part.trained and (ended_by := _train(recipe, run, self.device)) is not None:
                    return ended_by
                rows.append({"variant": part.name, "seed": seed, **self._scores(number, recipe, run, seed)})
                self._write(rows)
        return None

    def recipe(self, number: int, seed: int) -> HarivoRecipe:
        """That of a variant: parts behind it are off, and steps in which frame tokens learn alone are added.

        Where there are such steps the rate of learning stays level in all variants: a falling one would have fallen
        before that variant sees its first clip.
        """
        off = [change for part in PARTS[number + 1 :] for change in part.without]
        alone = 0 if "losses.tokens_first=0" in off else self.full.losses.tokens_first
        cache = self.full.autoencoder.cache or str(self.folder / "latents")
        table = copy.deepcopy(self.table)
        if self.full.losses.tokens_first:
            override(table, ["optimization.final_fraction=1.0"])
        override(table, [*off, f"run.steps={self.steps + alone}", f"seed={self.full.seed + seed}"])
        override(table, [f"autoencoder.cache={json.dumps(cache)}"])
        recipe = read_recipe(table, self.name)
        assert isinstance(recipe, HarivoRecipe)
        return recipe

    def _check(self) -> None:
        recipe, network = self.full, self.meter.network.config
        data = recipe.data
        if not isinstance(data, MovingShapesData):
            raise InputError(f"{self.name}: data of kind {data.kind!r}, expected moving_shapes: captions are checked")
        if data.size != network.size or data.frames < network.frames:
            raise InputError(
                f"{self.name}: clips of {data.frames} frames of {data.size} x {data.size} pixels, expected "
                f"{network.frames} frames or more of {network.size} x {network.size}, which {self.meter.name} takes"
            )
        parts = {
            "losses.attention": recipe.losses.attention,
            "losses.contrast": recipe.losses.contrast,
            "network.mapping": recipe.network.mapping,
            "network.frame_tokens": recipe.network.frame_tokens,
        }
        off = [key for key, value in parts.items() if not value]
        if off:
            raise InputError(f"{self.name}: {', '.join(off)} off, expected a recipe with all parts on")

    def _scores(self, number: int, recipe: HarivoRecipe, run: Path, seed: int) -> Row:
        """Of a variant's videos; as they were written, where the same videos were measured before."""
        part, sampling = PARTS[number], self.sampling
        alpha = 0.0 if part.trained else sampling.alpha
        folder = self.folder / "videos" / f"{part.name}-{seed}"
        made = {
            "recipe": _settings(to_table(recipe)),
            "captions": sampling.count,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "alpha": alpha,
            "network": self.meter.name,
        }
        path = folder / "scores.json"
        if path.exists():
            known: Row = json.loads(path.read_text(encoding="utf-8"))
            if known.get("made") == json.loads(json.dumps(made)):
                return _of_all(known)
        sampler = Sampler(run, self.device, alpha)
        write_samples(sampler, self.captions, folder, sampling.steps, sampling.guidance, seed)
        scores = evaluate_folder(folder, frechet=self.meter)
        _replace(path, json.dumps({"made": made, **scores}, indent=1) + "\n")
        return _of_all(scores)

    def _write(self, rows: list[Row]) -> None:
        """ablation.json and ablation.md of what is measured so far."""
        run, sampling = self.full.run, self.sampling
        conditions = {
            "recipe": self.name,
            "steps": self.steps,
            "tokens_first": self.full.losses.tokens_first,
            "clips_per_step": run.batch_size * run.accumulation,
            "captions": sampling.count,
            "ddim_steps": sampling.steps,
            "guidance": sampling.guidance,
            "alpha": sampling.alpha,
            "network": self.meter.name,
            "revision": git_revision(),
        }
        lines = list(summaries(rows))
        content = {"conditions": conditions, "variants": lines, "rows": rows}
        _replace(self.folder / "ablation.json", json.dumps(content, indent=1) + "\n")
        said = ", ".join(f"{name} {value}" for name, value in conditions.items())
        _replace(self.folder / "ablation.md", f"{said}\n\n{as_table(lines)}\n")


def summaries(rows: list[Row]) -> Iterator[Row]:
    """For every variant with rows its number of seeds, and mean and standard deviation over them of every measure."""
    for part in PARTS:
        own = [row for row in rows if row["variant"] == part.name]
        if not own:
            continue
        line: Row = {"variant": part.name, "title": part.title, "seeds": len(own)}
        for name in (*(measure[0] for measure in MEASURES), "frechet_real"):
            values = [float(row[name]) for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else None
            line[name] = {"mean": statistics.fmean(values), "spread": spread}
        yield line


def as_table(lines: list[Row]) -> str:
    """Markdown: means, and standard deviations over seeds where there are several."""
    header = ["variant", "seeds", *(measure[1] for measure in MEASURES)]
    table = [header, ["---"] * len(header)]
    for line in lines:
        cells = [_cell(line[name], factor, digits) for name, _, factor, digits in MEASURES]
        table.append([line["title"], str(line["seeds"]), *cells])
    real = statistics.fmean(line["frechet_real"]["mean"] for line in lines)
    table.append(["as many real clips", "", f"{real:.2f}", *[""] * (len(MEASURES) - 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _cell(value: Row, factor: float, digits: int) -> str:
    mean = f"{value['mean'] * factor:.{digits}f}"
    return mean if value["spread"] is None else f"{mean} ± {value['spread'] * factor:.{digits}f}"


def _trained(number: int) -> Part:
    """The part whose weights a variant has."""
    return next(part for part in reversed(PARTS[: number + 1]) if part.trained)


def _train(recipe: HarivoRecipe, folder: Path, device: torch.device) -> int | None:
    """Train to the recipe's end, from where an earlier call was; returns the signal that ended it early."""
    if not checkpoints.exist(folder):
        return start(recipe, folder, device).run()
    state = checkpoints.read(checkpoints.newest(folder))
    if _settings(state["recipe"]) != _settings(to_table(recipe)):
        raise InputError(f"{folder}: holds a run of other settings; go on with those, or choose another --out")
    return None if state["step"] >= recipe.run.steps else resume(folder, device).run()


def _settings(recipe: Table) -> Table:
    """What makes a run what it is: not where latents are kept."""
    return recipe | {"autoencoder": {**recipe["autoencoder"], "cache": ""}}


def _of_all(scores: Row) -> Row:
    """Without those of single videos."""
    return {name: value for name, value in scores.items() if name not in ("videos", "made")}


def _replace(path: Path, content: str) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
