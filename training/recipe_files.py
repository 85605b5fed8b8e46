"""Recipe files, and the line of one that an error is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import Recipe, override, read_recipe, read_table
from .settings import RecipeError

HEADING = re.compile(r"\s*\[\s*([\w.\-]+)\s*\]")
KEY = re.compile(r"\s*([\w.\-]+)\s*=")


class RecipeFile:
    """A recipe as its file and `--set` have it; raises RecipeError, which names the line, when it is impossible."""

    def __init__(self, path: Path, assignments: list[str]) -> None:
        self.path = path
        table = read_table(path)
        override(table, assignments)
        self.lines = key_lines(path.read_text(encoding="utf-8"))
        self.assigned = {assignment.partition("=")[0].strip() for assignment in assignments}
        with self.named():
            self.recipe: Recipe = read_recipe(table, str(path))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about a key of the recipe name the file, and the line that the key or its section has there."""
        try:
            yield
        except RecipeError as error:
            message = str(error).removeprefix(f"{self.path}: ")
            place = self._place(message)
            if place is None:
                raise
            raise RecipeError(f"{place}: {message}") from error

    def _place(self, message: str) -> str | None:
        """Where the keys before a message's first colon are; None where they are no keys."""
        keys = message.partition(": ")[0].split(", ")
        for key in keys:
            if key in self.assigned:
                return f"{self.path}, --set {key}"
        for key in keys:
            while key:
                if key in self.lines:
                    return f"{self.path}, line {self.lines[key]}"
                key = key.rpartition(".")[0]
        return str(self.path) if re.fullmatch(r"[\w.]+", keys[0]) else None


def key_lines(text: str) -> dict[str, int]:
    """The lines, counted from 1, of the sections and keys of a TOML text, by their full names."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := HEADING.match(line):
            section = f"{found[1]}."
            lines.setdefault(found[1], number)
        elif found := KEY.match(line):
            lines.setdefault(section + found[1], number)
    return lines
