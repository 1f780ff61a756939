"""What a matrix file may hold, by section: all that is of a wrong kind is told at once, before anything looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.typed import build
from pretrain.errors import nearest
from smet.fields import shown

SECTIONS = (
    "title", "notes", "text", "engine", "run", "sizes", "methods", "cells", "branches", "probe", "roles", "hypotheses",
    "questions", "tune", "law",
)  # fmt: skip
ENGINES = ("deepspeed", "torch")
"""What trains a cell: the program as it is, or plain torch in one process."""
MAPPINGS = ("text", "run", "sizes", "methods", "branches", "probe", "roles", "questions", "tune", "law")
OF_MAPPINGS = ("sizes", "methods")
"""Names to settings."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One entry of ``cells``: every combination of what it lists."""

    sizes: tuple[str, ...]
    methods: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    """Of branches, in the place of methods."""
    densities: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    lr: tuple[float, ...] = ()
    variants: tuple[str, ...] = ()
    samples: int | None = None
    """With ``at`` and ``evaluate``: of branches, where it differs from the section's."""
    at: tuple[int, ...] = ()
    evaluate: tuple[int, ...] = ()


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is of a wrong kind, or is not known, in a matrix file."""
    return [*_unknown(content), *_wrong_kinds(content)]


def _unknown(content: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} is not a known section{nearest(str(key), SECTIONS)}" for key in content if key not in SECTIONS)
    needed = ("run", "sizes", *(() if content.get("questions") else ("cells",)))
    yield from (f"section {key} is missing" for key in needed if not content.get(key))
    if content.get("engine", ENGINES[0]) not in ENGINES:
        yield f"engine is {shown(content['engine'])}, expected one of {', '.join(ENGINES)}"
    notes = content.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        yield f"notes is {notes!r}, expected a list of sentences"


def _wrong_kinds(content: Mapping[str, Any]) -> Iterator[str]:
    for name in MAPPINGS:
        section = content.get(name)
        if section is not None and not isinstance(section, dict):
            yield f"{name} is {shown(section)}, expected a mapping"
        elif name in OF_MAPPINGS:
            for key, entry in (section or {}).items():
                if not isinstance(entry, dict):
                    yield f"{name}.{key} is {shown(entry)}, expected a mapping, {{}} where there is nothing to say"
                elif name == "methods" and "density" in entry:
                    yield f"methods.{key}.density would not count; densities stand in cells, or in rows of questions"
    cells = content.get("cells") or []
    if not isinstance(cells, list):
        yield f"cells is {shown(cells)}, expected a list of mappings"
        return
    for number, group in enumerate(cells, 1):
        found: list[str] = []
        if isinstance(group, dict):
            build(Group, group, f"cells[{number}]", found)
        else:
            found.append(f"cells[{number}] is {shown(group)}, expected a mapping")
        yield from found
