"""The record of a run: metrics as JSON lines, averages between two lines, and the curves drawn from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from . import distributed

Row = dict[str, Any]
PANEL = (420, 240)
MARGIN = 34


class Meter:
    """Running means of named scalars."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one value of each name; nothing is copied from the device here."""
        for name, value in values.items():
            value = value.detach().double()
            self.totals[name] = self.totals[name].to(value.device) + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def gather(self) -> None:
        """Let the first of the processes that share a run have what all of them have counted, the others nothing."""
        if distributed.size() == 1:
            return
        own = {name: (float(total), self.counts[name]) for name, total in self.totals.items()}
        everything = distributed.all_of(own)
        self.totals, self.counts = {}, {}
        for values in everything if distributed.is_first() else []:
            for name, (total, count) in values.items():
                self.totals[name] = self.totals.get(name, torch.zeros((), dtype=torch.float64)) + total
                self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: float(total) / self.counts[name] for name, total in self.totals.items()}
        self.totals, self.counts = {}, {}
        return means

    def state_dict(self) -> Row:
        """Totals and counts."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: Row, device: torch.device) -> None:
        """The inverse of `state_dict`."""
        self.totals = {name: total.to(device) for name, total in state["totals"].items()}
        self.counts = dict(state["counts"])


class MetricsFile:
    """metrics.jsonl of a run folder."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open the file and drop rows after `last_step`: a killed run wrote them after its last checkpoint."""
        self.path = path
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def append(self, row: Row) -> None:
        """Add a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a metrics file; none when it does not exist."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the process was killed in the middle of this line
    return rows


def draw_curves(rows: list[Row], path: Path) -> None:
    """Draw each metric over the steps, one panel per metric, logarithmic where all its values are positive."""
    hidden = {"step", "seconds", "clips"}
    names = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
    columns = min(3, len(names)) or 1
    image = Image.new("RGB", (columns * PANEL[0], max(1, math.ceil(len(names) / columns)) * PANEL[1]), "white")
    for index, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        _draw_panel(ImageDraw.Draw(image), index % columns * PANEL[0], index // columns * PANEL[1], name, points)
    image.save(path)


def _draw_panel(draw: ImageDraw.ImageDraw, left: int, top: int, name: str, points: list[tuple[int, float]]) -> None:
    logarithmic = min(value for _, value in points) > 0
    heights = [math.log(value) if logarithmic else value for _, value in points]
    low, high, last = min(heights), max(heights), points[-1][0]
    width, height = PANEL[0] - 2 * MARGIN, PANEL[1] - 2 * MARGIN
    line = [
        (left + MARGIN + width * step / last, top + MARGIN + height * (high - value) / ((high - low) or 1))
        for (step, _), value in zip(points, heights, strict=True)
    ]
    draw.rectangle((left + MARGIN, top + MARGIN, left + MARGIN + width, top + MARGIN + height), outline="lightgrey")
    values = [value for _, value in points]
    scale = ", log" if logarithmic else ""
    draw.text((left + MARGIN, top + 4), f"{name} (min {min(values):.4g}, last {values[-1]:.4g}{scale})", fill="black")
    draw.text((left + MARGIN, top + MARGIN - 12), f"{max(values):.4g}", fill="grey")
    draw.text((left + MARGIN, top + MARGIN + height + 4), f"{min(values):.4g}", fill="grey")
    draw.text((left + MARGIN + width - 80, top + MARGIN + height + 4), f"step {last}", fill="grey")
    draw.line(line, fill="royalblue", width=2)
