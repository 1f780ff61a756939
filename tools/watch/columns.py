"""The numbers of a run by step, and few enough points of them for a screen: lowest, highest and mean of neighbours."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 2048
"""Most points of a line; a screen has about that many pixels."""
VALIDATION = "validation_loss"
LARGEST = 1e300
ABSENT = ...
"""Stands for a value that a record does not have."""
RUNNING = ("tokens",)
"""Sums of what came before: of neighbours the last one counts, not the mean."""


class Columns:
    """Rows of numbers, in the order of their steps.

    Points are *buckets* of ``size`` neighbouring rows, a power of two that grows with the run. Buckets begin at
    multiples of their size, so that all but the last one stay as they are while rows are added: whoever has the first
    ones needs only what follows.

    Args:
        names: of the numbers that are kept.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.clear()

    def clear(self) -> None:
        """Forget all rows, as when a run goes back."""
        self.steps = array("d")
        self.values = {name: array("d") for name in self.names}
        self.validation: list[tuple[float, float | None]] = []
        self.not_finite: Counter[str] = Counter()
        """Values by name that are no finite numbers; they are gaps."""
        self._unknown: Counter[str] = Counter()
        """Rows by name that have no finite value of it."""

    def __len__(self) -> int:
        return len(self.steps)

    def extend(self, rows: Sequence[dict[str, Any]]) -> int:
        """Take records; returns how many are left out, since they do not follow the one before."""
        last = self.steps[-1] if self.steps else -math.inf
        kept: list[dict[str, Any]] = []
        steps = array("d")
        for row in rows:
            if (step := number(row.get("step"))) > last:
                kept.append(row)
                steps.append(step)
                last = step
        self.steps.extend(steps)
        for name, values in self.values.items():
            given = [row.get(name, ABSENT) for row in kept]
            found = numbers(given)
            values.frombytes(found.tobytes())
            unknown = int(np.isnan(found).sum())
            self._unknown[name] += unknown
            if unknown and (odd := unknown - given.count(ABSENT)):
                self.not_finite[name] += odd
        for step, row in zip(steps, kept, strict=True):
            if VALIDATION in row:
                value = number(row[VALIDATION])
                self.validation.append((step, value if value == value else None))
        return len(rows) - len(kept)

    @property
    def size(self) -> int:
        """Rows of a bucket now."""
        return bucket_size(len(self.steps))

    def buckets(self, first: int, size: int, begin: int = 0, end: int | None = None) -> dict[str, Any]:
        """Buckets from number ``first`` on of the rows from ``begin`` to before ``end``.

        Returns:
            ``x``: the last step of each; for each column that holds anything ``mid``, and where a bucket has more than
            one row ``low`` and ``high``; None where nothing is known.
        """
        end = len(self.steps) if end is None else end
        begin += first * size
        if begin >= end:
            return {"x": [], "columns": {}}
        starts = np.arange(0, end - begin, size)
        ends = np.append(starts[1:], end - begin) - 1
        columns = {}
        for name, values in self.values.items():
            part = np.frombuffer(values)[begin:end]
            if len(self.steps) > self._unknown[name]:
                columns[name] = {"mid": plain(part[ends])} if name in RUNNING else _points(part, starts, size)
        return {"x": np.frombuffer(self.steps)[begin:end][ends].tolist(), "columns": columns}

    def between(self, low: float, high: float) -> tuple[int, int]:
        """The rows of the steps from ``low`` to ``high``: the first, and the one behind the last."""
        steps = np.frombuffer(self.steps) if self.steps else np.zeros(0)
        return int(np.searchsorted(steps, low, "left")), int(np.searchsorted(steps, high, "right"))


def bucket_size(rows: int) -> int:
    """The smallest power of two that makes at most ``MOST`` buckets of ``rows``."""
    size = 1
    while size * MOST < rows:
        size *= 2
    return size


def number(value: Any) -> float:
    """A finite number; NaN for anything else, such as the null that a run that diverged writes."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if -LARGEST < value < LARGEST else math.nan
    return math.nan


def numbers(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """``number`` of each, at once where all are of the usual kinds."""
    kinds = set(map(type, values))
    if kinds == {type(ABSENT)}:
        return np.full(len(values), math.nan)
    if kinds <= {float, int}:
        with contextlib.suppress(OverflowError):
            found = np.array(array("d", values))
            found[~(np.abs(found) < LARGEST)] = math.nan
            return found
    return np.fromiter(map(number, values), dtype=np.float64, count=len(values))


def _points(part: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], size: int) -> dict[str, list[float | None]]:
    if size == 1:
        return {"mid": plain(part)}
    known = ~np.isnan(part)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(known, part, 0.0), starts) / np.add.reduceat(known.astype(float), starts)
    low, high = np.fmin.reduceat(part, starts), np.fmax.reduceat(part, starts)
    return {"mid": plain(mean), "low": plain(low), "high": plain(high)}


def plain(values: np.ndarray[Any, Any]) -> list[float | None]:
    """Numbers of six digits for JSON, None for NaN."""
    return [None if value != value else float(f"{value:.6g}") for value in values.tolist()]
