"""Events, topology updates and samples of a run: lines of text and numbers from anybody's hands, cut to size."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

from pretrain.outside import printable
from pretrain.records import Follower, Rows

from .columns import number

KEPT = 2000
"""Most records of a kind that a page shows."""
LONGEST = 400
"""Characters of an event's text, or of a name."""
LAYERS = 10_000
SAID_BESIDE = ("time", "kind", "step")
TOTALS = ("step", "update", "fraction", "grown", "pruned", "recycled", "seconds")


def text(value: Any, most: int = LONGEST) -> str:
    """What a file calls a text: cut, and without what a terminal or a reader of lines would obey."""
    found = printable(str(value)[: most + 1])
    return found if len(found) <= most else found[: most - 1] + "…"


def known(value: Any) -> float | None:
    """A finite number, None for anything else."""
    found = number(value)
    return found if math.isfinite(found) else None


class Lines:
    """The last records of a file of lines, as a page shows them.

    ``epoch`` counts how often the file was written anew, ``count`` the records since.
    """

    def __init__(self, path: Path):
        self.follower = Follower(path)
        self.epoch = self.count = self.left_out = 0
        self.kept: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def poll(self) -> None:
        """Take what is new.

        Raises:
            OSError: the file cannot be read.
        """
        news = self.follower.poll()
        if news.again:
            self.epoch, self.count, self.left_out = self.epoch + 1, 0, 0
            self.kept.clear()
        self.left_out += news.left_out
        for row in self._shown(news.rows):
            self.kept.append(row)
            self.count += 1

    def _shown(self, rows: Rows) -> Rows:
        raise NotImplementedError

    def since(self, token: Any) -> dict[str, Any] | None:
        """What whoever has ``token`` lacks; None if nothing."""
        epoch, count = token if isinstance(token, list) and len(token) == 2 else (None, 0)
        if epoch != self.epoch or not isinstance(count, int) or not 0 <= count <= self.count:
            epoch, count = None, 0
        if epoch == self.epoch and count == self.count:
            return None
        new = min(self.count - count, len(self.kept))
        rows = list(self.kept)[len(self.kept) - new :] if new else []
        return {"token": [self.epoch, self.count], "anew": epoch is None, "rows": rows}


class Events(Lines):
    """``events.jsonl``."""

    def _shown(self, rows: Rows) -> Rows:
        return [
            {
                "time": known(row.get("time")),
                "kind": text(row.get("kind"), 40),
                "step": known(row.get("step")),
                "to": known(row.get("to")),
                "text": text(", ".join(_said(key, value) for key, value in row.items() if key not in SAID_BESIDE)),
            }
            for row in rows
        ]


class Samples(Lines):
    """``samples.jsonl``: what the model wrote on the way, from the prompts of ``evaluation.prompts``."""

    def _shown(self, rows: Rows) -> Rows:
        return [
            {
                "step": known(row.get("step")),
                "prompt": text(row.get("prompt"), 1000),
                "text": text(row.get("text"), 4000),
            }
            for row in rows
            if isinstance(row.get("text"), str)
        ]


class Topology(Lines):
    """``topology.jsonl``: of each update the totals, of the newest one every layer."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.newest: list[tuple[str, float | None, float | None]] = []
        """(name, density, tiles grown) of each layer at the newest update; None = not told."""

    def _shown(self, rows: Rows) -> Rows:
        found = []
        for row in rows:
            densities = [value for one in _layers(row, "density").values() if (value := known(one)) is not None]
            found.append(
                {
                    **{key: known(row.get(key)) for key in TOTALS},
                    "low": min(densities, default=None),
                    "high": max(densities, default=None),
                    "mean": sum(densities) / len(densities) if densities else None,
                }
            )
        if rows:
            density, moved = _layers(rows[-1], "density"), _layers(rows[-1], "moved")
            self.newest = [(text(name, 200), known(one), known(moved.get(name))) for name, one in density.items()]
        return found


def _layers(row: dict[str, Any], key: str) -> dict[str, Any]:
    """What a record says of each layer, of the first ones if there are too many."""
    value = row.get(key)
    if not isinstance(value, dict):
        return {}
    return value if len(value) <= LAYERS else dict(islice(value.items(), LAYERS))


def _said(key: str, value: Any) -> str:
    return str(value) if key in ("why", "reason", "text") else f"{key} {value}"
