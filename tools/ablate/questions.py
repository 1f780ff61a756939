"""Questions of a matrix file: models that are compared because something of them is equal, each at its own best rate.

A row's learning rate is tuned at a seed of its own (``tune``), before the seeds that are compared: the cells of a row
exist only once those of its tuning are done.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.typed import build
from pretrain.errors import nearest
from smet.fields import shown

Key = tuple[str, str, float]
"""(size, method, density): what has one best learning rate."""
EQUAL = {
    "bytes": "bytes at rest",
    "flops": "FLOPs of active weights in a run",
    "seconds": "time of a run",
    "tokens": "tokens",
}
"""What may be held equal, in words."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of a comparison."""

    size: str
    method: str
    density: float = 1.0
    lr: float | None = None
    """Fixed beforehand; None = tuned."""

    def key(self, content: Mapping[str, Any]) -> Key:
        """What is tuned together: a size may name another, ``tuned_at``, whose rate it takes, a method ``tuned_as``."""
        size = content["sizes"][self.size].get("tuned_at", self.size)
        return size, content["methods"][self.method].get("tuned_as", self.method), self.density


@dataclass(frozen=True, kw_only=True)
class Question:
    """Rows that are compared with the first of them, seed by seed."""

    name: str
    asks: str
    equal: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    quick: bool = False
    """Whether ``--quick`` answers it."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How rates are chosen: the one with the lowest validation loss at ``seed``.

    The middle two are tried first, then the neighbours of the best so far, until both have been.
    """

    seed: int
    rates: tuple[float, ...]
    """Rising."""

    def following(self, losses: Mapping[float, float]) -> list[float]:
        """Rates to try next, from the losses of those that were tried; none when the best is known."""
        if not losses:
            middle = (len(self.rates) - 1) // 2
            return list(self.rates[middle : middle + 2])
        place = self.rates.index(_best(losses))
        near = self.rates[max(0, place - 1) : place + 2]
        return [rate for rate in near if rate not in losses]


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sections ``questions`` and ``tune`` of a matrix file, whose kinds are sound."""
    found: list[str] = []
    for name, entry in (content.get("questions") or {}).items():
        where = f"questions.{name}"
        if not isinstance(entry, dict):
            found.append(f"{where} is {shown(entry)}, expected a mapping")
            continue
        made, sound = build(Question, {**entry, "name": str(name)}, where, found)
        if sound:
            found += [f"{where}{wrong}" for wrong in _wrong(made, content)]
    for section, key, kind in (("sizes", "tuned_at", "size"), ("methods", "tuned_as", "method")):
        for name, own in (content.get(section) or {}).items():
            if key in own and own[key] not in list(content[section]):
                found.append(f"{section}.{name}.{key} is {shown(own[key])}, expected the name of a {kind}")
    for name, own in (content.get("methods") or {}).items():
        found += [] if found else _wrong_variant(name, own, content["methods"])
    return found or _wrong_tuning(content)


def _wrong_variant(name: str, own: Mapping[str, Any], methods: Mapping[str, Any]) -> list[str]:
    other = methods.get(str(own.get("tuned_as")), {})
    where = f"methods.{name}.tuned_as is {shown(own.get('tuned_as'))}"
    if "tuned_as" in other:
        return [f"{where}, which is tuned as another itself, expected a method with a rate of its own"]
    if "tuned_as" in own and (own.get("method") == "dense") != (other.get("method") == "dense"):
        return [f"{where}, expected a sparse method for a sparse one and a dense one for a dense one"]
    return []


def _wrong(asked: Question, content: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch("[a-z0-9][a-z0-9-]*", asked.name):
        yield ": its name becomes a file's, expected small letters, digits and -"
    if asked.equal not in EQUAL:
        yield f".equal is {asked.equal!r}, expected one of {', '.join(EQUAL)}"
    yield from (f".{name} is empty" for name in ("rows", "seeds") if not getattr(asked, name))
    yield from (f".seeds has {seed}, expected numbers from 0 on" for seed in asked.seeds if seed < 0)
    methods: Mapping[str, Any] = content.get("methods") or {}
    for number, row in enumerate(asked.rows):
        where = f".rows[{number}]"
        for key, value, names in (("size", row.size, content["sizes"]), ("method", row.method, methods)):
            if value not in names:
                near = nearest(value, names) or f", expected one of {', '.join(names)}"
                yield f"{where}.{key} is {value!r}{near}"
        if methods.get(row.method, {}).get("method") == "dense" and row.density != 1.0:
            yield f"{where}.density is {row.density} with a dense method, expected none"
        if not 0 < row.density <= 1:
            yield f"{where}.density is {row.density}, expected above 0 and at most 1"
        if row.lr is not None and row.lr <= 0:
            yield f"{where}.lr is {row.lr}, expected a positive number"


def _wrong_tuning(content: Mapping[str, Any]) -> list[str]:
    asked = questions(content)
    if all(row.lr is not None for one in asked for row in one.rows):
        return []
    if not content.get("tune"):
        return ["tune is missing, expected seed and rates, since rows of questions leave their learning rate open"]
    found: list[str] = []
    tuning, sound = build(Tuning, content["tune"], "tune", found)
    if sound:
        if tuning.seed < 0 or any(tuning.seed in one.seeds for one in asked):
            found.append(f"tune.seed is {tuning.seed}, expected one from 0 on that no question compares")
        rising = all(low < high for low, high in itertools.pairwise(tuning.rates))
        if not tuning.rates or tuning.rates[0] <= 0 or not rising:
            found.append(f"tune.rates is {list(tuning.rates)}, expected positive numbers, rising")
    return found


def questions(content: Mapping[str, Any]) -> list[Question]:
    """All of them, in the file's order."""
    section = content.get("questions") or {}
    return [build(Question, {**entry, "name": str(name)}, "", [])[0] for name, entry in section.items()]


def tuning_of(content: Mapping[str, Any]) -> Tuning | None:
    """How rates are chosen, if any are."""
    return build(Tuning, content["tune"], "tune", [])[0] if content.get("tune") else None


def chosen(content: Mapping[str, Any], only: Iterable[str], quick: bool) -> list[Question]:
    """Those that were asked for; all if nothing is said."""
    names = list(only)
    return [one for one in questions(content) if (one.name in names or not names) and (one.quick or not quick)]


Make = Callable[[Row, int, float, bool], Any]
"""(row, seed, learning rate, whether it is the tuned one) to a cell."""


def cells(
    asked: Iterable[Question], content: Mapping[str, Any], results: Iterable[Mapping[str, Any]], make: Make
) -> Iterator[Any]:
    """Cells of tuning, and those of rows whose rate is known, in the order of the questions."""
    tuning, losses = tuning_of(content), tuned(content, results)
    best = best_rates(content, losses)
    for question in asked:
        for row in question.rows:
            if row.lr is None and tuning is not None:
                size, method, _ = key = row.key(content)
                tried, known = dataclasses.replace(row, size=size, method=method), losses.get(key, {})
                rates = [*known, *tuning.following(known)]
                yield from (make(tried, tuning.seed, rate, False) for rate in rates)
        for seed in question.seeds:  # so that a stop leaves whole pairs
            for row in question.rows:
                rate = row.lr if row.lr is not None else best.get(row.key(content))
                if rate is not None:
                    yield make(row, seed, rate, row.lr is None)


def tuned(content: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> dict[Key, dict[float, float]]:
    """Loss of each rate that was tried, of every key, from results of cells: a run that diverged is the worst."""
    tuning = tuning_of(content)
    losses: dict[Key, dict[float, float]] = {}
    if tuning is None:
        return losses
    for cell in results:
        if cell["seed"] == tuning.seed and cell["lr"] in tuning.rates:
            loss = cell["validation_loss"]
            key = cell["size"], cell["method"], cell["density"]
            losses.setdefault(key, {})[cell["lr"]] = float("inf") if loss is None else loss
    return losses


def best_rates(content: Mapping[str, Any], losses: Mapping[Key, Mapping[float, float]]) -> dict[Key, float]:
    """Of every key whose tuning is done."""
    tuning = tuning_of(content)
    if tuning is None:
        return {}
    return {key: _best(some) for key, some in losses.items() if not tuning.following(some)}


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda rate: (losses[rate], rate))


def waiting(asked: Iterable[Question], content: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows that have no rate yet, in words."""
    best = best_rates(content, tuned(content, results))
    keys = dict.fromkeys(row.key(content) for one in asked for row in one.rows if row.lr is None)
    return [f"{size} {method} d{density:g}" for size, method, density in keys if (size, method, density) not in best]
