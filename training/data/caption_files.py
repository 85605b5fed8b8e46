"""Captions of the videos in a folder: from a list (.jsonl, .csv), or a text file beside each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from ..settings import RecipeError

LISTS = ("captions.jsonl", "captions.csv")
"""Looked for in the folder, the first one counts."""
FILE_COLUMNS, CAPTION_COLUMNS = ("file", "path", "video"), ("caption", "text")
WEBVID = ("videoid", "page_dir", "name")
"""Columns of WebVid's lists: the video is page_dir/videoid.mp4, or videoid.mp4."""
LONGEST_FIELD = 1 << 20


def find_list(folder: Path, named: str | None = None) -> Path | None:
    """The list of a folder's captions, as a recipe names it (in the folder or anywhere), or as it is usually called.

    Raises RecipeError when the named one does not exist.
    """
    if named is None:
        return next((folder / name for name in LISTS if (folder / name).is_file()), None)
    found = next((path for path in (folder / named, Path(named)) if path.is_file()), None)
    if found is None:
        raise RecipeError(f"data.captions: found {named!r}, which is neither in {folder} nor a file elsewhere")
    return found


def read_list(path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """What each line says: names that the video may have inside its folder, the likeliest first, and its caption.

    Raises RecipeError for a line or a table that is not as expected.
    """
    if path.suffix.lower() == ".jsonl":
        yield from _read_json_lines(path)
    elif path.suffix.lower() == ".csv":
        yield from _read_table(path)
    else:
        raise RecipeError(f"{path}: a list of captions of the kind {path.suffix!r}, expected .jsonl or .csv")


def _read_json_lines(path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                name, caption = row["file"], row["caption"]
                if not isinstance(name, str) or not isinstance(caption, str):
                    raise TypeError
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise RecipeError(f'{path}, line {number}: expected {{"file": ..., "caption": ...}}') from error
            yield (name,), caption


def _read_table(path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        name, caption = (next((c for c in names if c in columns), None) for names in (FILE_COLUMNS, CAPTION_COLUMNS))
        webvid = all(column in columns for column in WEBVID)
        if not webvid and (name is None or caption is None):
            raise RecipeError(
                f"{path}: found the columns {', '.join(columns) or 'none'}, expected file and caption, or WebVid's "
                f"{', '.join(WEBVID)}"
            )
        try:
            for row in rows:
                if webvid:
                    video, page, text = (row[column] or "" for column in WEBVID)
                    yield (f"{page}/{video}.mp4", f"{video}.mp4"), text.strip()
                elif name and caption:
                    yield (row[name] or "",), (row[caption] or "").strip()
        except csv.Error as error:
            raise RecipeError(f"{path}, line {rows.line_num}: {error}") from error
