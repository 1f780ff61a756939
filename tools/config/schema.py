"""The JSON schema of a run file, for editors: what the loader takes, as far as one key at a time can tell.

Bounds of numbers are asked of ``problems()`` of the sections, which alone know them. What concerns several keys, and
what is missing, only the loader tells: a run file may have bases, and each file of a chain says a part.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

from pretrain.config.passed_on import DEEPSPEED_KEYS, ZERO_INSTEAD
from pretrain.config.retired import RETIRED
from pretrain.config.schema import CallbackConfig, Source, WriterConfig
from pretrain.config.typed import build, problems_of
from pretrain.models import DEFAULT, FAMILIES, family
from pretrain.writers import WRITERS

from .keys import REQUIRED, Key, keys_in, mapping_of, sections, summary

OWN_NAME = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean"}
SHORT = {
    Source: "one corpus, as its prefix",
    CallbackConfig: "a callback, as its name",
    WriterConfig: "a writer, as its name",
}
"""Mappings that may be written as one text; of corpora and writers a list of one may be too."""
LIMITS = (1 << 16, 1 << 24, (1 << 31) - 1, 3)

Node = dict[str, Any]


def schema() -> Node:
    """The whole schema, draft 7, which editors know best."""
    parts: Node = {
        "base": {
            "description": "Run file, or list of them, merged below this one; relative to its folder.",
            "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}],
        }
    }
    for section in sections():
        parts[section] = {"description": summary(section).replace("``", "`"), **_section(section)}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A run file of SMET",
        "description": "Made by `smet config schema`. A key without a value (null) is at its default.",
        "type": "object",
        "properties": parts,
        "additionalProperties": False,
    }


def _section(section: str) -> Node:
    if section == "deepspeed":
        refused = {"type": ["object", "null"], "properties": dict.fromkeys(ZERO_INSTEAD, False)}
        return _mapping({**dict.fromkeys(DEEPSPEED_KEYS, True), "zero_optimization": refused})
    if section == "callbacks":
        return _list_of(sections()["callbacks"], section)
    if section == "model":
        return _models()
    return _mapping({**_properties(section, sections()[section]), **_retired(section)})


def _models() -> Node:
    """The keys depend on the family; of one of one's own nobody knows them."""
    known = {name: _mapping(_properties("model", family(name).config)) for name in FAMILIES}
    chosen: Node = known[DEFAULT]
    for name, node in known.items():
        if name != DEFAULT:
            chosen = {"if": _family({"const": name}), "then": node, "else": chosen}
    return {"if": _family({"type": "string", "pattern": ":"}), "then": {"type": "object"}, "else": chosen}


def _family(which: Node) -> Node:
    return {"type": "object", "required": ["family"], "properties": {"family": which}}


def _retired(section: str) -> Node:
    return {
        key: {"description": "A key of an earlier release; see what the loader says of it.", "doNotSuggest": True}
        for home, key in RETIRED
        if home == section
    }


def _mapping(properties: Node, required: list[str] | None = None) -> Node:
    """``required``: of a mapping in a list; a section may have all of its keys in a base, and be empty."""
    kinds: Any = "object" if required is not None else ["object", "null"]
    more = {"required": required} if required else {}
    return {"type": kinds, "properties": properties, "additionalProperties": False, **more}


def _properties(place: str, cls: Any) -> Node:
    """Key of the dataclass ``cls``, which stands at ``place``, to what it may be."""
    found: Node = {}
    for key in keys_in(cls, place):
        name = key.name.removeprefix(f"{place}.")
        node = {"description": key.meaning.replace("``", "`"), **_node(key)}
        if key.kind in (int, float) and "[]" not in place:
            node |= _bounds(place, cls, name, key)
        if key.default is not REQUIRED and key.default is not None:
            node["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
        found[name] = node
    return found


def _node(key: Key) -> Node:
    """What the value of one key may be; null is its default."""
    kind, origin = key.kind, typing.get_origin(key.kind)
    if key.own:
        own = {"type": "string", "pattern": OWN_NAME, "description": "one's own, package.module:name"}
        return {"anyOf": [{"enum": [*key.choices, None]}, own]}
    if key.choices:
        return {"enum": [*key.choices, None]}
    if mapping_of(kind) is not None:
        return _list_of(kind, key.name)
    if origin is tuple:
        items = typing.get_args(kind)
        size = {} if items[-1] is Ellipsis else {"minItems": len(items), "maxItems": len(items)}
        return {"type": ["array", "null"], "items": {"type": PLAIN[items[0]]}, **size}
    if origin is dict:
        return {"type": ["object", "null"]}
    plain = typing.get_args(kind)[0] if origin is typing.Annotated else kind
    return {"type": [PLAIN[plain], "null"]}


def _list_of(kind: Any, name: str) -> Node:
    """A list of mappings, with the short forms that the loader writes out."""
    inner = mapping_of(kind)
    place = f"{name}[]"
    required = [key.name.removeprefix(f"{place}.") for key in keys_in(inner, place) if key.default is REQUIRED]
    item: Node = _mapping(_properties(place, inner), required)
    for key in required:
        if isinstance(kinds := item["properties"][key].get("type"), list):
            item["properties"][key]["type"] = kinds[0]
    short: Node = {"type": "string", "description": SHORT.get(inner, "")}
    if inner is WriterConfig:
        own = {"type": "string", "pattern": OWN_NAME}
        short = {"description": SHORT[inner], "anyOf": [{"enum": [*WRITERS]}, own]}
    if inner in (CallbackConfig, WriterConfig):
        item = {"anyOf": [short, item]}
    whole = {"type": ["array", "null"], "items": item}
    return {"anyOf": [short, whole]} if inner in (Source, WriterConfig) else whole


def _bounds(section: str, cls: Any, name: str, key: Key) -> Node:
    """Between which numbers the section itself takes the key ``name``, every other key at its default; that of the key
    is always among them."""

    def takes(value: float) -> bool:
        made, _ = build(cls, {name: value}, section, [])
        return not any(text.startswith(f"{section}.{name} is ") for text in problems_of(section, made))

    if key.kind is float:
        return _bounds_of_numbers(takes)
    found = _whole_bounds(takes)
    if "minimum" in found and isinstance(key.default, int):
        found["minimum"] = min(found["minimum"], key.default)
    return found


def _whole_bounds(takes: Callable[[float], bool]) -> Node:
    found: Node = {}
    if not takes(-1):
        found["minimum"] = next((value for value in range(65) if takes(value)), 0)
    for limit in LIMITS:  # two refused beyond it: a number that does not divide something is no bound
        if takes(limit) and not takes(limit + 1) and not takes(2 * limit):
            found["maximum"] = limit
    return found


def _bounds_of_numbers(takes: Callable[[float], bool]) -> Node:
    found: Node = {}
    if not takes(-1.0):
        found["minimum" if takes(0.0) else "exclusiveMinimum"] = 0
    for limit in (1, 2):
        if takes(limit) and not takes(limit + 0.5):
            found["maximum"] = limit
        elif takes(limit - 1e-9) and not takes(limit):
            found["exclusiveMaximum"] = limit
    return found
