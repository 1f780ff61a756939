"""Answers to the questions of a matrix file, as data: each row's cells, its losses, and how it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .questions import Question, Row, questions, tuning_of
from .statistics import Difference, Spread
from .view import Cell, View

UNEQUAL = 0.05
"""What is to be equal is called so within this share of the first row's."""


@dataclass(frozen=True)
class Answer:
    """One row of a question, as far as its cells are done."""

    row: Row
    cells: list[Cell]
    losses: dict[int, float]
    """Validation loss by seed, where it is a number."""
    over: Difference | None
    """Its loss minus the first row's, seed by seed."""
    at_an_end: bool = False
    """Whether its best rate is the first or last of those that may be tried."""
    rate_of: str = ""
    """Where its rate is from, if not from runs like its own."""

    @property
    def loss(self) -> Spread | None:
        """Over seeds; None where there is none."""
        return Spread.of(list(self.losses.values()))

    @property
    def name(self) -> str:
        """For tables and figures."""
        density = "" if self.row.density == 1.0 else f", d = {self.row.density:g}"
        rate = "" if self.row.lr is None else f", lr {self.row.lr:g}"
        return f"{self.row.size}: {self.row.method}{density}{rate}"

    @property
    def stands_still(self) -> bool:
        """Whether updates changed nothing, though there were some."""
        moved = self.mean(lambda cell: cell.get("moved"))
        return bool(self.mean(lambda cell: cell.get("topology_updates"))) and moved == 0 and not self.falls

    @property
    def falls(self) -> bool:
        """Whether density is another one in the course of the run; one of few tiles is never quite what was asked."""
        mean = self.mean(lambda cell: cell.get("mean_density"))
        return mean is not None and abs(mean / self.row.density - 1) > 2 * UNEQUAL

    def mean(self, read: Callable[[Cell], float | None]) -> float | None:
        """Of a number of its cells."""
        found = Spread.of([read(cell) for cell in self.cells])
        return None if found is None else found.mean

    def minus(self, other: Answer) -> Difference | None:
        """Its loss minus another's, seed by seed; None without a common seed."""
        return Difference.of(self.losses, other.losses)

    def surely_below(self, other: Answer) -> bool:
        """Whether the test tells it from the other, and it is lower."""
        over = self.minus(other)
        return over is not None and over.significant and over.mean < 0


READ: Mapping[str, Callable[[Cell], float | None]] = {
    "bytes": lambda cell: (cell.get("bytes") or {}).get("total"),
    "flops": lambda cell: cell["flops_per_token"] * cell["tokens"] if "flops_per_token" in cell else None,
    "seconds": lambda cell: cell.get("train_seconds" if cell.get("device") == "cuda" else "train_cpu_seconds"),
    "tokens": lambda cell: cell.get("tokens"),
}
"""What of a cell is which of ``questions.EQUAL``. A GPU's seconds are those of the clock."""


def answered(view: View) -> dict[Question, list[Answer]]:
    """Every question of which there is a row with a result."""
    found = {question: [_answer(view, question, row) for row in question.rows] for question in questions(view.matrix)}
    return {question: rows for question, rows in found.items() if any(row.loss for row in rows)}


def _answer(view: View, question: Question, row: Row) -> Answer:
    def losses(of: Row) -> dict[int, float]:
        found = view.by_seed("validation_loss", of.method, of.size, of.density, of.lr)
        return {seed: loss for seed, loss in found.items() if seed in question.seeds}

    cells = [c for c in view.cells(row.method, row.size, row.density, row.lr) if c["seed"] in question.seeds]
    first, ends = question.rows[0], _ends(view)
    over = None if row == first else Difference.of(losses(row), losses(first))
    at_an_end = row.lr is None and any(cell["lr"] in ends for cell in cells)
    return Answer(row, cells, losses(row), over, at_an_end, _rate_of(view, row))


def _ends(view: View) -> set[float]:
    """Rates that have no neighbour on one side."""
    tuning = tuning_of(view.matrix)
    return {tuning.rates[0], tuning.rates[-1]} if tuning is not None and len(tuning.rates) > 2 else set()


def _rate_of(view: View, row: Row) -> str:
    if row.lr is not None:
        return "not tuned"
    size, method, _ = row.key(view.matrix)
    said = [] if method == row.method else [f"that of {method}"]
    if size != row.size:
        said.append(f"tuned in {view.steps(size):,} of {view.steps(row.size):,} steps")
    return ", ".join(said)
