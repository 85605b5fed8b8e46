"""Frozen dataclasses filled from TOML tables, with errors that say where, what was found and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar, Union

Table = dict[str, Any]
T = TypeVar("T")


class InputError(ValueError):
    """Something the user named that cannot be used; the message says what was found and what was expected."""


class RecipeError(InputError):
    """A recipe that cannot be used; the message names file, key, what was found and what was expected."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with its documentation and the limits of a number (`above` is exclusive)."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum}
    return dataclasses.field(default=default, metadata={"doc": doc, "limits": limits})


def section(factory: type, *, doc: str) -> Any:
    """A dataclass field that holds a nested section and defaults to the section's own defaults."""
    return dataclasses.field(default_factory=factory, metadata={"doc": doc})


def read_section(kind: Any, table: Table, where: str) -> Any:
    """Build the dataclass `kind` (or the member of a union that the table's tag names) from a TOML table.

    Raises RecipeError for unknown, missing, mistyped or impossible values; `where` is what stands before a key in an
    error: "recipe.toml: " at the top, "recipe.toml: run." in a section.
    """
    chosen = _choose(kind, table, where)
    hints = typing.get_type_hints(chosen)
    fields = {field.name: field for field in dataclasses.fields(chosen) if field.init}
    for key in table:
        if key not in fields:
            raise RecipeError(f"{where}{key}: unknown key{_nearest(key, fields)}")
    values = {
        name: _read_value(hints[name], table[name], where + name, field.metadata.get("limits", {}))
        for name, field in fields.items()
        if name in table
    }
    missing = [name for name, field in fields.items() if name not in table and _required(field)]
    if missing:
        raise RecipeError(f"{where}{missing[0]}: missing")
    try:
        return chosen(**values)
    except ValueError as error:
        raise RecipeError(f"{where.rstrip('. :')}: {error}") from error


def to_table(value: Any) -> Table:
    """The TOML table of a settings dataclass: `read_section` of it gives an equal dataclass."""
    table: Table = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item is not None:
            table[field.name] = to_table(item) if dataclasses.is_dataclass(item) else item
    return table


def to_toml(table: Table, name: str = "") -> str:
    """TOML text of a table and its sections; JSON's scalars and lists are valid TOML."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    heading = f"[{name}]\n" if name else ""
    blocks = [heading + "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())]
    for key, items in table.items():
        if isinstance(items, dict):
            blocks.append(to_toml(items, f"{name}.{key}" if name else key))
    return "\n".join(blocks)


def describe(kind: type, name: str = "") -> list[str]:
    """Lines that document every key of a settings dataclass: section, key, default, meaning."""
    lines = [f"[{name}]"] if name else []
    nested: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        sections = [option for option in _options(hints[field.name]) if dataclasses.is_dataclass(option)]
        for option in sections:
            nested += ["", *describe(typing.cast(type, option), f"{name}.{field.name}" if name else field.name)]
        if not sections:
            default = "required" if _required(field) else _default(field)
            lines.append(f"{field.name} = {default}".ljust(40) + f"# {field.metadata.get('doc', 'see the network')}")
    return lines + nested


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return json.dumps(value)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union without None."""
    members = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(member for member in members if member is not types.NoneType)


def _choose(kind: Any, table: Table, where: str) -> type:
    """The dataclass of a union whose tag (its field of one literal value) equals the table's."""
    options = _options(kind)
    if len(options) == 1:
        return typing.cast(type, options[0])
    tagged: dict[str, dict[str, type]] = {}
    for option in options:
        for name, hint in typing.get_type_hints(option).items():
            if typing.get_origin(hint) is Literal and len(typing.get_args(hint)) == 1:
                tagged.setdefault(name, {})[typing.get_args(hint)[0]] = option
    tag, choices = next(iter(tagged.items()))
    found = table.get(tag)
    if found not in choices:
        raise RecipeError(f"{where}{tag}: found {found!r}, expected one of {', '.join(map(repr, choices))}")
    return choices[found]


def _nearest(key: str, names: typing.Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(key, names, n=1)
    return f", did you mean {near[0]!r}?" if near else f", expected one of {', '.join(names)}"


def _read_value(kind: Any, value: Any, where: str, limits: Table) -> Any:
    errors = []
    for option in _options(kind):
        if dataclasses.is_dataclass(option):
            if not isinstance(value, dict):
                raise RecipeError(f"{where}: found {value!r}, expected a section")
            return read_section(kind, value, f"{where}.")
        try:
            converted = _convert(option, value)
        except TypeError as error:
            errors.append(str(error))
            continue
        _check_limits(converted, where, limits)
        return converted
    raise RecipeError(f"{where}: found {value!r}, expected {' or '.join(errors)}")


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`; raises TypeError with the name of the expected type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError("one of " + ", ".join(map(repr, arguments)))
    if origin is tuple:
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        if isinstance(value, (list, tuple)) and (repeated or len(value) == len(arguments)):
            kinds = [arguments[0]] * len(value) if repeated else arguments
            return tuple(_convert(item_kind, item) for item_kind, item in zip(kinds, value, strict=True))
        raise TypeError("a list" if repeated else f"a list of {len(arguments)} values")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    names = {float: "a finite number", int: "a whole number", str: "a text in quotes", bool: "true or false"}
    raise TypeError(names.get(kind, str(kind)))


def _check_limits(value: Any, where: str, limits: Table) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, str):
            continue
        minimum, above, maximum = limits.get("minimum"), limits.get("above"), limits.get("maximum")
        if minimum is not None and number < minimum:
            raise RecipeError(f"{where}: found {number}, expected at least {minimum}")
        if above is not None and number <= above:
            raise RecipeError(f"{where}: found {number}, expected more than {above}")
        if maximum is not None and number > maximum:
            raise RecipeError(f"{where}: found {number}, expected at most {maximum}")
