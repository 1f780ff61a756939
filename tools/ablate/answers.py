"""Answers to the questions of a matrix file: of each a sentence, a table and a figure, all from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..figures import style
from . import dots
from .dots import MEANING, draw_rows
from .kinds import kind
from .questions import EQUAL, Question, Row, questions, tuning_of
from .statistics import Difference, Spread
from .tables import markdown
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

    @property
    def loss(self) -> Spread | None:
        """Over seeds; None where there is none."""
        return Spread.of(list(self.losses.values()))

    @property
    def name(self) -> str:
        """For tables and figures."""
        said = "" if self.row.density == 1.0 else f", d = {self.row.density:g}"
        return f"{self.row.size}: {self.row.method}{said}"

    def mean(self, read: Callable[[Cell], float | None]) -> float | None:
        """Of a number of its cells."""
        found = Spread.of([read(cell) for cell in self.cells])
        return None if found is None else found.mean


READ: Mapping[str, Callable[[Cell], float | None]] = {
    "bytes": lambda cell: (cell.get("bytes") or {}).get("total"),
    "flops": lambda cell: cell["flops_per_token"] * cell["tokens"] if "flops_per_token" in cell else None,
    "seconds": lambda cell: cell.get("train_cpu_seconds"),
    "tokens": lambda cell: cell.get("tokens"),
}
"""What of a cell is which of ``questions.EQUAL``."""


def answered(view: View) -> dict[Question, list[Answer]]:
    """Every question of which there is a row with a result."""
    found = {question: [_answer(view, question, row) for row in question.rows] for question in questions(view.matrix)}
    return {question: rows for question, rows in found.items() if any(row.loss for row in rows)}


def _answer(view: View, question: Question, row: Row) -> Answer:
    def losses(of: Row) -> dict[int, float]:
        found = view.by_seed("validation_loss", of.method, of.size, of.density, of.lr)
        return {seed: loss for seed, loss in found.items() if seed in question.seeds}

    cells = [c for c in view.cells(row.method, row.size, row.density, row.lr) if c["seed"] in question.seeds]
    first = question.rows[0]
    return Answer(row, cells, losses(row), None if row == first else Difference.of(losses(row), losses(first)))


@dataclass(frozen=True)
class Written:
    """The part of the page, and its figures."""

    sections: list[str]
    images: list[Path]


def write(view: View, prefix: Path) -> Written:
    """Answer all that is known; figures are written beside ``prefix``."""
    parts: list[str] = []
    images: list[Path] = []
    ends = _ends(view)
    for question, rows in answered(view).items():
        path = prefix.with_name(f"{prefix.name}-{question.name}.png")
        message = sentence(question, rows)
        _draw(view, question, rows, message, path)
        about = " ".join([f"**{message}.**", _equality(question, rows), *_still(rows)])
        parts += [f"## {question.asks}", about, _table(rows, ends), f"![{message}](images/{path.name})"]
        images.append(path)
    return Written(parts, images)


def overview(view: View) -> list[str]:
    """A sentence of each question: first where sparse models do not pay, then where they do, then how to train them."""
    dense = view.dense_methods
    told: list[tuple[int, str]] = []
    for question, rows in answered(view).items():
        against_dense = rows[0].row.method in dense
        best = _lowest(_compared(rows))
        pays = best.row.method not in dense and all(_beats(best, row) for row in rows if row.row.method in dense)
        said = ("**It pays.** " if pays else "**It does not pay, or not surely.** ") if against_dense else ""
        text = " ".join([f"{said}{question.asks} {sentence(question, rows)}.", *_still(rows)])
        told.append(((1 if pays else 0) if against_dense else 2, text))
    return [text for _, text in sorted(told, key=lambda pair: pair[0])]


def _beats(row: Answer, other: Answer) -> bool:
    over = Difference.of(row.losses, other.losses)
    return over is not None and over.significant and over.mean < 0


def sentence(question: Question, rows: Sequence[Answer]) -> str:
    """What is best of them, and by how much."""
    known, first = _compared(rows), rows[0]
    best = _lowest(known)
    if best is first or first.loss is None:
        rivals = [row for row in known if row is not best and row.over is not None]
        if not rivals:
            return f"Only {best.name} is done"
        near = min(rivals, key=lambda row: row.over.mean if row.over else 0.0)
        assert near.over is not None
        return f"Nothing beats {best.name}; nearest is {near.name}, {near.over.mean:+.3f} nats ({near.over.verdict()})"
    assert best.over is not None
    place = "is best" if best.over.significant else "is lowest"
    return f"{best.name} {place}, {best.over.mean:+.3f} nats over {first.name} ({best.over.verdict()})"


def _compared(rows: Sequence[Answer]) -> list[Answer]:
    """Rows with a loss, without those that are the static model again."""
    return [row for row in rows if row.loss is not None and (row is rows[0] or not _stands_still(row))]


def _lowest(rows: Sequence[Answer]) -> Answer:
    return min(rows, key=lambda row: row.loss.mean if row.loss else 0.0)


def _equality(question: Question, rows: Sequence[Answer]) -> str:
    """Whether what is to be equal is so."""
    read = READ[question.equal]
    known = {row.name: value for row in rows if (value := row.mean(read)) is not None}
    first = rows[0].mean(read)
    if first is None:
        return f"Equal {EQUAL[question.equal]} were asked for, and not measured."
    off = {name: value / first for name, value in known.items() if abs(value / first - 1) > UNEQUAL}
    said = f"Equal are {EQUAL[question.equal]}"
    if not off:
        return f"{said}, within {100 * UNEQUAL:.0f} % of {rows[0].name}'s."
    return f"{said}, but for {', '.join(f'{name} ({ratio:.2f} of the first row)' for name, ratio in off.items())}."


def _still(rows: Sequence[Answer]) -> list[str]:
    """What updates did not do, though there were some."""
    names = [row.name for row in rows if _stands_still(row)]
    return [f"No update of {name} could replace anything: it is the static model." for name in names]


def _stands_still(row: Answer) -> bool:
    moved = row.mean(_moved)
    return bool(row.mean(_updates)) and moved == 0


def _updates(cell: Cell) -> float | None:
    return cell.get("topology_updates")


def _moved(cell: Cell) -> float | None:
    return cell.get("moved")


def _ends(view: View) -> set[float]:
    """Rates that have no neighbour on one side."""
    tuning = tuning_of(view.matrix)
    return {tuning.rates[0], tuning.rates[-1]} if tuning is not None and len(tuning.rates) > 2 else set()


def _table(rows: Sequence[Answer], ends: Collection[float] = ()) -> str:
    heads = ["model", "rate", "kB at rest", "GFLOP per run", "CPU s", "tokens per active weight", "updates", "replaced",
             "validation loss", "over the first", "p", "seeds"]  # fmt: skip
    return markdown(heads, [_line(row, ends) for row in rows])


def _line(row: Answer, ends: Collection[float]) -> list[str]:
    rates = sorted({cell["lr"] for cell in row.cells})
    share = row.mean(lambda cell: cell["tokens"] / cell["active_weights"] if cell.get("active_weights") else None)
    return [
        row.name,
        ", ".join(f"{rate:g}{' (the last tried)' if rate in ends else ''}" for rate in rates) or "-",
        _number(row.mean(READ["bytes"]), 1e3, "{:,.0f}"),
        _number(row.mean(READ["flops"]), 1e9, "{:,.0f}"),
        _number(row.mean(READ["seconds"]), 1.0, "{:,.0f}"),
        _number(share, 1.0, "{:.1f}"),
        _number(row.mean(_updates), 1.0, "{:.0f}"),
        _number(row.mean(_moved), 1.0, "{:,.0f}"),
        "-" if row.loss is None else row.loss.text(4),
        "-" if row.over is None else f"{row.over.mean:+.4f}",
        "-" if row.over is None or row.over.p is None else f"{row.over.p:.2g}",
        str(row.loss.count if row.loss else 0),
    ]


def _number(value: float | None, unit: float, form: str) -> str:
    return "-" if value is None else form.format(value / unit)


def _draw(view: View, question: Question, answers: Sequence[Answer], message: str, path: Path) -> None:
    known = [answer for answer in answers if answer.loss is not None]
    methods: Mapping[str, Any] = view.matrix.get("methods") or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (8.0, 1.4 + 0.3 * len(known))
    with style.picture(path, size, message, f"equal {EQUAL[question.equal]}; {MEANING}") as figure:
        axis = figure.subplots()
        draw_rows(axis, [
            dots.Row(answer.name, list(answer.losses.values()),
                     style.COLORS[kind(methods.get(answer.row.method) or {})],
                     answer.over is not None and answer.over.significant)
            for answer in known
        ])  # fmt: skip
        if known[0].loss is not None:
            axis.axvline(known[0].loss.mean, color=style.MUTED, linewidth=0.9, zorder=1)
        axis.set_xlabel("validation loss (nats per token)")
