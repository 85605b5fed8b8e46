"""What a Moving Shapes clip shows, in words: clip specifications, their captions, and which captions are held out.

Grammar: OBJECT ["and" OBJECT] "over a" BACKGROUND "background", where OBJECT is
"a" COLOUR SHAPE "moves" [SPEED] DIRECTION.

Single frames can be described as pictures are, which say where things are and not where they go: there OBJECT is
"a" COLOUR SHAPE ["at the" [ROW] [COLUMN]].
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..settings import InputError

Split = Literal["train", "held_out"]

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left to right", "right to left", "top to bottom", "bottom to top")
SPEEDS = ("slowly", "", "quickly")
"""An empty word is the middle speed."""
BACKGROUNDS = ("dark", "grey", "light")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACE_WORDS = ("at the", *ROWS, *COLUMNS)
GRAMMAR_WORDS = ("a", "moves", "over", "background", "and")
HELD_OUT_ONE_IN = 3
"""So many that 256 distinct captions in the training set's mix of one and two objects can be held out."""
SPLIT_SALT = "split 50: "
"""Makes the hash that divides the captions hold out every colour, shape, direction and speed about equally often."""


@dataclass(frozen=True, order=True)
class ShapeSpec:
    """One object as its caption words: a colour, a shape, a direction and a speed of the tuples above."""

    colour: str
    shape: str
    direction: str
    speed: str = ""

    def caption(self) -> str:
        """Return the words of this object, for example "a red circle moves slowly left to right"."""
        return " ".join(filter(None, ("a", self.colour, self.shape, "moves", self.speed, self.direction)))


@dataclass(frozen=True)
class ClipSpec:
    """One or two objects (the later one is drawn in front) over a background."""

    objects: tuple[ShapeSpec, ...]
    background: str

    def caption(self) -> str:
        """Return the caption that `parse_caption` reads back."""
        return f"{' and '.join(shape.caption() for shape in self.objects)} over a {self.background} background"


def split_of(spec: ClipSpec) -> Split:
    """Return the split a specification belongs to, whatever the order in which its objects are named."""
    canonical = ClipSpec(tuple(sorted(spec.objects)), spec.background).caption()
    digest = hashlib.sha256((SPLIT_SALT + canonical).encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0 else "train"


def single_object_specs() -> Iterator[ClipSpec]:
    """Yield every specification with one object (648 of them) in a fixed order."""
    for colour, shape, direction, speed, background in itertools.product(
        COLOURS, SHAPES, DIRECTIONS, SPEEDS, BACKGROUNDS
    ):
        yield ClipSpec((ShapeSpec(colour, shape, direction, speed),), background)


def caption_terms(places: bool = False) -> tuple[str, ...]:
    """Return every word that a caption can contain, sorted; a direction is one term. With those for places, or not."""
    words = (*COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *BACKGROUNDS, *GRAMMAR_WORDS, *(PLACE_WORDS if places else ()))
    return tuple(sorted(filter(None, words)))


def picture_caption(spec: ClipSpec, places: Sequence[tuple[str, str]]) -> str:
    """Return what a picture of these objects shows, with a row and a column for each of them; "" leaves one open."""
    objects = []
    for shape, (row, column) in zip(spec.objects, places, strict=True):
        place = ("at the", row, column) if row or column else ()
        objects.append(" ".join(filter(None, ("a", shape.colour, shape.shape, *place))))
    return f"{' and '.join(objects)} over a {spec.background} background"


def parse_caption(text: str) -> ClipSpec:
    """Read a caption in any letter case and punctuation; an InputError names the word that was not understood."""
    reader = _WordReader(text)
    objects = [_parse_object(reader)]
    if reader.accept("and"):
        objects.append(_parse_object(reader))
        if objects[0].colour == objects[1].colour:
            raise InputError(f"both objects of '{text}' are {objects[0].colour}: two objects need different colours")
    reader.choose("over")
    reader.choose("a")
    background = reader.choose(*BACKGROUNDS)
    reader.choose("background")
    reader.finish()
    return ClipSpec(tuple(objects), background)


def with_other_directions(text: str) -> list[str]:
    """Return the captions of training clips that differ from this one only in directions.

    One object goes another way, two have exchanged theirs (none if that says the same); raises InputError for texts
    that are no captions.
    """
    spec = parse_caption(text)
    ways = tuple(shape.direction for shape in spec.objects)
    others = [(way,) for way in DIRECTIONS] if len(ways) == 1 else [ways[::-1]]
    specs = [
        ClipSpec(
            tuple(replace(shape, direction=way) for shape, way in zip(spec.objects, other, strict=True)),
            spec.background,
        )
        for other in others
        if other != ways
    ]
    return [other.caption() for other in specs if split_of(other) == "train"]


def with_other_shapes(text: str) -> list[str]:
    """Return the captions of training clips that differ from this one only in shapes; InputError for other texts."""
    spec = parse_caption(text)
    specs = [
        replace(
            spec, objects=tuple(replace(shape, shape=name) for shape, name in zip(spec.objects, names, strict=True))
        )
        for names in itertools.product(SHAPES, repeat=len(spec.objects))
    ]
    return [other.caption() for other in specs if other != spec and split_of(other) == "train"]


def _parse_object(reader: "_WordReader") -> ShapeSpec:
    reader.choose("a")
    colour, shape = reader.choose(*COLOURS), reader.choose(*SHAPES)
    reader.choose("moves")
    speed = next((word for word in SPEEDS if word and reader.accept(word)), "")
    return ShapeSpec(colour, shape, reader.choose(*DIRECTIONS), speed)


class _WordReader:
    """Walks over the words of a caption."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = re.findall(r"\w+", text.lower())

    def accept(self, phrase: str) -> bool:
        """Step over a phrase if it comes next; returns whether it did."""
        words = phrase.split()
        if self.words[: len(words)] != words:
            return False
        del self.words[: len(words)]
        return True

    def choose(self, *phrases: str) -> str:
        """Step over the first of the phrases that comes next and return it; raises InputError when none does."""
        for phrase in phrases:
            if self.accept(phrase):
                return phrase
        raise self._error(phrases)

    def finish(self) -> None:
        """Raise InputError when words are left."""
        if self.words:
            raise self._error(("the end of the caption",))

    def _error(self, expected: Sequence[str]) -> InputError:
        found = f"'{self.words[0]}'" if self.words else "the end of the caption"
        return InputError(f"caption '{self.text}': found {found}, expected {' or '.join(expected)}")
