"""The part of a page about questions: of each a sentence, a table and a figure, all from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..figures import style
from ..markdown import table
from . import dots
from .answers import READ, Answer, answered
from .dots import MEANING, draw_rows
from .kinds import kind
from .questions import EQUAL, Question
from .sentences import conditions, outcome, sentence
from .view import Cell, View


@dataclass(frozen=True)
class Written:
    """The part of the page, and its figures."""

    sections: list[str]
    images: list[Path]


def write(view: View, prefix: Path) -> Written:
    """Answer all that is known; figures are written beside ``prefix``."""
    parts: list[str] = []
    images: list[Path] = []
    for question, rows in answered(view).items():
        path = prefix.with_name(f"{prefix.name}-{question.name}.png")
        message, title = sentence(rows, view.dense_methods), outcome(rows, view.dense_methods)
        _draw(view, question, rows, title, path)
        about = " ".join([f"**{message}.**", *conditions(question, rows), f"(`--question {question.name}`)"])
        drawn = f"![Losses by model and seed. {title}](images/{path.name})"
        parts += [f"## {question.asks}", about, _table(rows, view.device), drawn]
        images.append(path)
    return Written(parts, images)


MEAN_DENSITY = "density, mean over the run"
"""A column where some row has another one than at its end."""


def _table(rows: Sequence[Answer], device: str) -> str:
    time = "GPU s" if device == "cuda" else "CPU s"
    heads = ["model", "rate", "kB at rest", "GFLOP of active weights", time, "tokens per stored weight", "updates",
             "tiles moved", "validation loss", "minus the first", "p", "seeds"]  # fmt: skip
    lines = [_line(row) for row in rows]
    if any(row.falls for row in rows):
        heads.insert(1, MEAN_DENSITY)
        for line, row in zip(lines, rows, strict=True):
            line.insert(1, _number(row.mean(_mean_density), 1.0, "{:.3f}"))
    return table(heads, lines)


def _mean_density(cell: Cell) -> float | None:
    return cell.get("mean_density")


def _line(row: Answer) -> list[str]:
    share = row.mean(lambda cell: cell["tokens"] / cell["active_weights"] if cell.get("active_weights") else None)
    return [
        row.name,
        _rates(row),
        _number(row.mean(READ["bytes"]), 1e3, "{:,.0f}"),
        _number(row.mean(READ["flops"]), 1e9, "{:,.0f}"),
        _number(row.mean(READ["seconds"]), 1.0, "{:,.0f}"),
        _number(share, 1.0, "{:.1f}"),
        _number(row.mean(lambda cell: cell.get("topology_updates")), 1.0, "{:.0f}"),
        _number(row.mean(lambda cell: cell.get("moved")), 1.0, "{:,.0f}"),
        "-" if row.loss is None else row.loss.text(4),
        "-" if row.over is None else f"{row.over.mean:+.4f}",
        "-" if row.over is None or row.over.p is None else f"{row.over.p:.2g}",
        str(row.loss.count if row.loss else 0),
    ]


def _rates(row: Answer) -> str:
    rates = ", ".join(f"{rate:g}" for rate in sorted({cell["lr"] for cell in row.cells}))
    notes = ", ".join(filter(None, ["the last tried" if row.at_an_end else "", row.rate_of]))
    return f"{rates} ({notes})" if rates and notes else rates or "-"


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
        if answers[0].loss is not None:
            axis.axvline(answers[0].loss.mean, color=style.MUTED, linewidth=0.9, zorder=1)
        axis.set_xlabel("validation loss (nats per token)")
