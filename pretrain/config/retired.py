"""Keys that a run file had in earlier releases: what became of them, and what an old file that has them means now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from smet.say import say


def _row_parallel(value: Any) -> tuple[str, bool]:
    """Which layers are split over their inputs: the model's family knows."""
    default = isinstance(value, (list, tuple)) and list(value) == ["*o_proj", "*down_proj"]
    if default:
        return "is left out: the model's family says which layers are split over their inputs, and means the same", True
    return (
        f"is {value!r}, expected no such key: the model's family says which layers are split over their inputs, and"
        " weights that were stored otherwise cannot be read; remove it, or use the release that wrote it",
        False,
    )


RETIRED: dict[tuple[str, str], Callable[[Any], tuple[str, bool]]] = {
    ("sparsity", "row_parallel"): _row_parallel,
}
"""(section, key) to what its value means now: a sentence, and whether nothing is lost without it."""


def without_retired(section: str, given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """``given`` without keys of earlier releases; says once what became of each, or adds to ``problems``."""
    kept = dict(given)
    for (home, key), meaning in RETIRED.items():
        if home != section or key not in kept:
            continue
        if (value := kept.pop(key)) is None:
            continue
        text, harmless = meaning(value)
        if harmless:
            _say_once(f"note: {section}.{key} {text}")
        else:
            problems.append(f"{section}.{key} {text}")
    return kept


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    say(text, logging.INFO)
