"""Values against the annotations of the dataclass fields that hold them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from functools import lru_cache
from typing import Any

WORDS: dict[Any, str] = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "text", dict: "a mapping",
}  # fmt: skip
LARGEST_INTEGER = 2**63 - 1


def wrong_types(config: Any) -> dict[str, str]:
    """Field name to ``"<found>, expected <kind>"`` for every value of a dataclass that is not of its field's kind.

    Numbers are finite and fit 64 bits. Kinds: int, float, bool, str, tuples of these, ``X | None``, and choices of text
    (``Literal``), of which any text will do here: which ones there are, ``choices`` tells.
    """
    hints = typing.get_type_hints(type(config))
    found = {}
    for part in dataclasses.fields(config):
        value, kind = getattr(config, part.name), hints[part.name]
        if not _fits(value, kind):
            found[part.name] = f"{shown(value)}, expected {_described(kind)}"
    return found


@lru_cache(maxsize=64)
def choices(cls: type) -> dict[str, tuple[str, ...]]:
    """Field name to the values it may have, for every field of a dataclass that is a ``Literal`` of text."""
    kinds = {name: _alone(kind) for name, kind in typing.get_type_hints(cls, include_extras=True).items()}
    return {
        name: typing.get_args(kind)
        for name, kind in kinds.items()
        if typing.get_origin(kind) is typing.Literal and isinstance(typing.get_args(kind)[0], str)
    }


def shown(value: Any) -> str:
    """A value and its type, short enough for one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the longest ones
        return f"a number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _alone(kind: Any) -> Any:
    """``X`` of ``X | None``."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    return next(part for part in typing.get_args(kind) if part is not type(None))


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str)
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        open_ended = len(parts) == 2 and parts[1] is Ellipsis
        return (
            isinstance(value, tuple)
            and (open_ended or len(value) == len(parts))
            and all(_fits(item, parts[0]) for item in value)
        )
    if parts:  # X | None
        return any(_fits(value, part) for part in parts)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        whole = isinstance(value, number) and not isinstance(value, bool)
        return whole and abs(value) <= LARGEST_INTEGER and math.isfinite(value)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return WORDS[str]
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {count}values, each {WORDS[parts[0]]}"
    return WORDS[parts[0] if parts else kind]
