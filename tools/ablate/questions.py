"""Questions of a matrix file: models that are compared because something of them is equal, each at its own best rate.

A row's learning rate is tuned at a seed of its own (``tune``), before the seeds that are compared: the cells of a row
exist only once those of its tuning are done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.errors import nearest

Key = tuple[str, str, float]
"""(size, method, density): what has one best learning rate."""
EQUAL = {
    "bytes": "bytes at rest",
    "flops": "FLOPs of products per token",
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
        """What is tuned together: a size may name another, ``tuned_at``, whose rate it takes."""
        return (content["sizes"][self.size] or {}).get("tuned_at", self.size), self.method, self.density


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
    """How rates are chosen: the one with the lowest validation loss at ``seed``."""

    seed: int
    rates: tuple[float, ...]


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sections ``questions`` and ``tune`` of a matrix file."""
    section = content.get("questions") or {}
    if not isinstance(section, dict):
        return ["questions: expected a mapping of names"]
    found = [f"questions.{name}: {wrong}" for name, entry in section.items() for wrong in _wrong(entry, content)]
    if section and not found:
        found += [f"tune: {wrong}" for wrong in _wrong_tuning(content)]
    return found


def _wrong(entry: Any, content: Mapping[str, Any]) -> Iterable[str]:
    if not isinstance(entry, dict):
        yield "expected a mapping"
        return
    known = [field.name for field in dataclasses.fields(Question) if field.name != "name"]
    yield from (f"'{key}' is not known{nearest(str(key), known)}" for key in entry if key not in known)
    yield from (f"{key} is missing" for key in ("asks", "equal", "rows", "seeds") if not entry.get(key))
    if entry.get("equal") and entry["equal"] not in EQUAL:
        yield f"equal is {entry['equal']!r}, expected one of {', '.join(EQUAL)}"
    rows = entry.get("rows") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        yield "rows: expected a list of mappings"
        return
    columns = [field.name for field in dataclasses.fields(Row)]
    for number, row in enumerate(rows, 1):
        yield from (
            f"row {number}: '{key}' is not known{nearest(str(key), columns)}" for key in row if key not in columns
        )
        for key, names in (("size", content.get("sizes")), ("method", content.get("methods"))):
            if row.get(key) not in (names or {}):
                yield f"row {number}: {key} is {row.get(key)!r}, expected one of {', '.join(map(str, names or {}))}"
        if (content.get("methods") or {}).get(row.get("method"), {}).get("method") == "dense" and "density" in row:
            yield f"row {number}: density is {row['density']} with a dense method, expected none"
    for size, own in (content.get("sizes") or {}).items():
        if (at := (own or {}).get("tuned_at", size)) not in content["sizes"]:
            yield f"tuned_at of {size} is {at!r}, expected a size"


def _wrong_tuning(content: Mapping[str, Any]) -> Iterable[str]:
    tune = content.get("tune") or {}
    asked = questions(content)
    if all(row.lr is not None for one in asked for row in one.rows):
        return
    if not isinstance(tune, dict) or set(tune) != {"seed", "rates"} or not tune["rates"]:
        yield "expected seed and rates, since rows leave their learning rate open"
    elif any(tune["seed"] in one.seeds for one in asked):
        yield f"seed {tune['seed']} is compared too, expected one that is held out"


def questions(content: Mapping[str, Any]) -> list[Question]:
    """All of them, in the file's order."""
    return [
        Question(**{**entry, "name": name, "seeds": tuple(entry["seeds"]),
                    "rows": tuple(Row(**row) for row in entry["rows"])})
        for name, entry in (content.get("questions") or {}).items()
    ]  # fmt: skip


def chosen(content: Mapping[str, Any], only: Iterable[str], quick: bool) -> list[Question]:
    """Those that were asked for; all if nothing is said."""
    names = list(only)
    return [one for one in questions(content) if (one.name in names or not names) and (one.quick or not quick)]


Make = Callable[[Row, int, float, bool], Any]
"""(row, seed, learning rate, whether it is the tuned one) to a cell."""


def cells(
    asked: Iterable[Question], content: Mapping[str, Any], best: Mapping[Key, float], make: Make
) -> Iterator[Any]:
    """Cells of tuning, and those of rows whose rate is known, in the order of the questions."""
    tune = content.get("tune")
    tuning = Tuning(seed=tune["seed"], rates=tuple(tune["rates"])) if tune else None
    for question in asked:
        for row in question.rows:
            if row.lr is None and tuning is not None:
                tried = dataclasses.replace(row, size=row.key(content)[0])
                yield from (make(tried, tuning.seed, rate, False) for rate in tuning.rates)
        for seed in question.seeds:  # so that a stop leaves whole pairs
            for row in question.rows:
                rate = row.lr if row.lr is not None else best.get(row.key(content))
                if rate is not None:
                    yield make(row, seed, rate, row.lr is None)


def best_rates(content: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> dict[Key, float]:
    """Of every key whose tuning is done, from results of cells: a run that diverged is the worst."""
    tune = content.get("tune")
    if not tune:
        return {}
    losses: dict[Key, dict[float, float]] = {}
    for cell in results:
        if cell["seed"] == tune["seed"]:
            loss = cell["validation_loss"]
            key = cell["size"], cell["method"], cell["density"]
            losses.setdefault(key, {})[cell["lr"]] = float("inf") if loss is None else loss
    whole = {key: some for key, some in losses.items() if set(some) >= set(tune["rates"])}
    return {key: min(some, key=lambda rate: (some[rate], rate)) for key, some in whole.items()}


def waiting(asked: Iterable[Question], content: Mapping[str, Any], best: Mapping[Key, float]) -> list[str]:
    """Rows that have no rate yet, in words."""
    keys = dict.fromkeys(row.key(content) for one in asked for row in one.rows if row.lr is None)
    return [f"{size} {method} d{density:g}" for size, method, density in keys if (size, method, density) not in best]
