"""Sheets on which people answer yes or no about videos whose makers they do not know, and what came of them.

HARIVO compares models so; what is asked here is in our words.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .data.folder import read_captions
from .data.sources import find_sources
from .settings import InputError

QUESTIONS = {
    "follows_caption": "Does the video show all that the caption says?",
    "moves_naturally": "Do things move as they would in reality?",
    "stays_the_same": "Does everything keep its looks, without flicker or sudden change?",
    "looks_good": "Is each single picture free of visible errors?",
}
"""Columns of a sheet, each answered by 1 (yes) or 0 (no)."""
SHEET, KEY = "sheet.csv", "key.csv"


def write_sheet(folder: Path, out: Path, seed: int = 0) -> int:
    """Copies of a folder's captioned videos under numbers, shuffled, with a sheet for raters and the key to it.

    Every folder in `folder` that has videos is a model. `key.csv` says which video is whose: it is not for raters.
    Returns how many videos there are.

    Raises:
        InputError: no captioned video, or `out` exists.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; choose another folder, so that no answers are lost")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of videos")
    captions = _captions(folder)
    videos = [source.path for source in find_sources(folder) if source.path.is_file() and source.path in captions]
    if not videos:
        raise InputError(f"{folder}: no video with a caption; expected captions.jsonl, captions.csv or a .txt for each")
    order = np.random.default_rng(seed).permutation(len(videos)).tolist()
    out.mkdir(parents=True)
    rows, keys = [], []
    for number, place in enumerate(order, 1):
        path = videos[place]
        name = f"{number:05d}{path.suffix.lower()}"
        shutil.copyfile(path, out / name)
        rows.append({"video": name, "caption": captions[path], **dict.fromkeys(QUESTIONS, "")})
        keys.append({"video": name, "model": _model(path, folder), "file": path.relative_to(folder).as_posix()})
    _write(out / SHEET, rows)
    _write(out / KEY, keys)
    questions = "".join(f"{name}: {text}\n" for name, text in QUESTIONS.items())
    (out / "questions.txt").write_text(f"Write 1 (yes) or 0 (no) into every column.\n{questions}", encoding="utf-8")
    return len(videos)


def read_sheets(out: Path, sheets: list[Path]) -> dict[str, Any]:
    """Share of yes for every model and question over the filled sheets, and how often raters agree in pairs.

    Raises:
        InputError: a sheet that is missing, not of this folder, or has an answer that is neither 0 nor 1.
    """
    key = {row["video"]: row["model"] for row in _read(out / KEY, ("video", "model"))}
    answers = [_answers(path, set(key)) for path in sheets]
    table: dict[str, Any] = {"raters": len(sheets), "videos": len(key)}
    for model in sorted(set(key.values())):
        videos = [video for video, owner in key.items() if owner == model]
        table[model] = {
            question: round(float(np.mean([found[video][question] for found in answers for video in videos])), 4)
            for question in QUESTIONS
        }
    pairs = [(one, other) for place, one in enumerate(answers) for other in answers[place + 1 :]]
    if pairs:
        same = [one[video][name] == other[video][name] for one, other in pairs for video in key for name in QUESTIONS]
        table["agreement"] = round(float(np.mean(same)), 4)
    return table


def _captions(folder: Path) -> dict[Path, str]:
    """Captions by path, of the folder itself and of those of models in it."""
    found = {folder / name: text for name, text in read_captions(folder).items() if text}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        found |= {inner / name: text for name, text in read_captions(inner).items() if text}
    return found


def _model(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else folder.name


def _answers(path: Path, videos: set[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line, row in enumerate(_read(path, ("video", *QUESTIONS)), 2):
        for question in QUESTIONS:
            if (row[question] or "").strip() not in ("0", "1"):
                raise InputError(f"{path}, line {line}: {question} is {row[question]!r}, expected 1 (yes) or 0 (no)")
        found[row["video"]] = {question: int(row[question]) for question in QUESTIONS}
    if set(found) != videos:
        raise InputError(f"{path}: answers for {len(found)} videos, expected the {len(videos)} of {KEY}")
    return found


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: no such sheet")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path}: no column {', '.join(missing)}; expected a sheet as it was written, filled in")
        return list(reader)
