"""Keys that a run file had in earlier releases: what became of them, and what an old file that has them means now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pretrain.config.once import note_once


class Meaning(NamedTuple):
    """What the value of a retired key means now."""

    text: str
    """A sentence that goes on from the key's name."""
    harmless: bool
    """Whether nothing is lost without it."""
    instead: dict[str, Any] = {}
    """Keys of the same section that say it now; those that the file gives win."""


def _row_parallel(value: Any) -> Meaning:
    """Which layers are split over their inputs: the model's family knows."""
    default = isinstance(value, (list, tuple)) and list(value) == ["*o_proj", "*down_proj"]
    if default:
        return Meaning(
            "is left out: the model's family says which layers are split over their inputs, and means the same", True
        )
    return Meaning(
        f"is {value!r}, expected no such key: the model's family says which layers are split over their inputs, and"
        " weights that were stored otherwise cannot be read; remove it, or use the release that wrote it",
        False,
    )


def _tensorboard(value: Any) -> Meaning:
    """Whether TensorBoard's files were written: it is one of several writers now."""
    if value is False:
        return Meaning(
            "is left out: logging.writers names what else gets the figures, and nothing does by itself", True
        )
    if value is True:
        return Meaning("is taken as logging.writers: [tensorboard]", True, {"writers": ["tensorboard"]})
    return Meaning(f"is {value!r}, expected no such key; logging.writers names what else gets the figures", False)


RETIRED: dict[tuple[str, str], Callable[[Any], Meaning]] = {
    ("sparsity", "row_parallel"): _row_parallel,
    ("logging", "tensorboard"): _tensorboard,
}
"""(section, key) to what its value means now."""


def without_retired(section: str, given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """``given`` without keys of earlier releases; says once what became of each, or adds to ``problems``."""
    kept = dict(given)
    for (home, key), meaning in RETIRED.items():
        if home != section or key not in kept:
            continue
        if (value := kept.pop(key)) is None:
            continue
        found = meaning(value)
        if found.harmless:
            note_once(f"{section}.{key} {found.text}")
            kept = {**found.instead, **kept}
        else:
            problems.append(f"{section}.{key} {found.text}")
    return kept
