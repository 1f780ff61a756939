"""From plain YAML values to typed dataclasses, collecting every problem instead of stopping at one."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

from pretrain.errors import ConfigError, nearest
from pretrain.models.answers import answer
from pretrain.outside import is_no_text
from pretrain.paths import LocalPath, expanded
from smet.config import SmetConfig
from smet.fields import LARGEST_INTEGER, WORDS, shown

T = TypeVar("T")
_STAND_INS: dict[Any, Any] = {int: 1, float: 1.0, str: "missing", LocalPath: "missing", bool: False}


def build(cls: type[T], given: dict[str, Any], where: str, problems: list[str]) -> tuple[T, bool]:
    """Make a dataclass from a mapping, appending to ``problems`` what does not fit.

    A key whose value is null counts as not given. What is missing or of the wrong type is reported and
    replaced by the default or a stand-in, so that the other keys can still be checked.

    Returns:
        The object, and whether every key was sound; if not, the object is good for checks only.
    """
    known = {part.name: part for part in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls, include_extras=True)
    before = len(problems)
    values: dict[str, Any] = {}
    excused = set()  # required keys that were given, though wrongly: they are reported once
    for key, value in given.items():
        if key not in known:
            hint = _without_space(str(key), known) or nearest(str(key), known) or f"; known keys: {', '.join(known)}"
            problems.append(f"{where}.{key} is not a known key{hint}")
            excused |= {name for name in known if f"'{name}'" in hint}
        elif value is not None:
            try:
                values[key] = coerce(value, hints[key], f"{where}.{key}", problems)
            except TypeError as mismatch:
                problems.append(f"{where}.{key} is {mismatch}")
                excused.add(key)
    missing = [name for name, part in known.items() if name not in values and _required(part)]
    problems += [f"{where}.{name} is missing, it has no default" for name in missing if name not in excused]
    values |= {name: _STAND_INS.get(hints[name], ()) for name in missing}
    try:
        made = answer(f"{cls.__module__}.{cls.__qualname__}, which '{where}' is made of,", lambda: cls(**values))
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    return made, len(problems) == before


def _without_space(key: str, known: Collection[str]) -> str:
    """For ``{path:data/a}``, which is one key in YAML."""
    name, colon, _ = key.partition(":")
    return f" (did you mean '{name}'? its colon needs a space behind it)" if colon and name in known else ""


def problems_of(section: str, config: Any) -> list[str]:
    """Every problem of one section's dataclass, made by hand or from a file, under its names in a run file."""
    made, found = rebuilt(section, config)  # NaN and text compare with nothing
    told = {text.split(" ")[0] for text in found}
    who = f"{type(made).__module__}.{type(made).__qualname__}"
    own: list[str] = answer(f"problems() of {who}", made.problems)
    if not isinstance(own, (list, tuple)) or not all(isinstance(text, str) for text in own):
        return [*found, f"problems() of {who} gives {shown(own)}, expected a list of sentences, [] where all is well"]
    if isinstance(config, SmetConfig):  # whose library knows of no sections
        own = [f"{section}.{text}" for text in own]
    return found + [text for text in own if text.split(" ")[0] not in told]


def rebuilt(section: str, config: Any) -> tuple[Any, list[str]]:
    """A dataclass like ``config`` that is good for checks, and what in ``config`` is of the wrong type."""
    found: list[str] = []
    made, _ = build(type(config), vars(config), section, found)
    return made, found


def coerce(value: Any, kind: Any, where: str, problems: list[str]) -> Any:
    """Return ``value`` as the annotated ``kind``.

    Raises:
        TypeError: with text ``"<found>, expected <kind>"``.
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # only "X | None" is used; null never comes here
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is typing.Literal:  # which of them there are, problems() tells
        kind = type(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Annotated:
        return _coerce_path(value, where, problems)
    if typing.get_origin(kind) is tuple:
        return _coerce_tuple(value, typing.get_args(kind), where, problems)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        made, _ = build(typing.cast(type[Any], kind), value, where, problems)
        return made
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type[Any], kind)):
        build(typing.cast(type[Any], kind), vars(value), where, problems)
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind in (int, float) and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise TypeError(f"{shown(value)}, expected {_describe(kind)} that fits 64 bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and is_no_text(value):
        raise TypeError(f"{ascii(value[:40])}, expected text; \\ud800 to \\udfff are no characters")
    plain = typing.get_origin(kind) or kind
    if (isinstance(value, plain) and not (kind is int and isinstance(value, bool))) and _finite(value):
        return value
    raise TypeError(f"{shown(value)}, expected {_describe(kind)}{_advice(value, kind)}")


def _coerce_path(value: Any, where: str, problems: list[str]) -> str:
    text: str = coerce(value, str, where, problems)
    try:
        return expanded(text)
    except ValueError as error:
        raise TypeError(str(error)) from None


def _advice(value: Any, kind: Any) -> str:
    """For values that YAML read otherwise than they were meant."""
    if kind is str and isinstance(value, bool):
        words = "true, yes and on" if value else "false, no and off"
        return f"; YAML reads {words} alike, quote it to make it text"
    if kind is str and isinstance(value, (int, float)):
        return "; quote it to make it text"
    if isinstance(value, str) and value.lower() in ("none", "nil", "undefined"):
        return "; nothing is null in YAML"
    return ""


def _coerce_tuple(value: Any, kinds: tuple[Any, ...], where: str, problems: list[str]) -> tuple[Any, ...]:
    open_ended = len(kinds) == 2 and kinds[1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (open_ended or len(value) == len(kinds)):
        count = "" if open_ended else f"{len(kinds)} "
        raise TypeError(f"{shown(value)}, expected a list of {count}values, each {_describe(kinds[0])}")
    items = []
    for position, item in enumerate(value):
        try:
            made = coerce(item, kinds[0] if open_ended else kinds[position], f"{where}[{position}]", problems)
        except TypeError as mismatch:
            problems.append(f"{where}[{position}] is {mismatch}")
            continue
        items.append(made)
    if not open_ended and len(items) != len(kinds):
        raise TypeError(f"{shown(value)}, expected {len(kinds)} values, each {_describe(kinds[0])}")
    return tuple(items)


def _required(part: dataclasses.Field[Any]) -> bool:
    return part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _describe(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        names = ", ".join(part.name for part in dataclasses.fields(kind))
        return f"a mapping of {names}"
    return "a mapping of keys" if typing.get_origin(kind) is dict else WORDS.get(kind, str(kind))
