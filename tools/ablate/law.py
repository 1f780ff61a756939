"""How what sparsity gains moves with the size of the model: a line over the logarithm of active weights, and its doubt.

Points are differences of questions, seed by seed: a row's validation loss minus the first row's. An extrapolation goes
only as far as the interval of the line's mean says more than nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pretrain.config.typed import build
from pretrain.errors import nearest
from pretrain.numbers import short_count

from ..figures import style
from ..markdown import table
from .answers import Answer, answered
from .kinds import kind
from .questions import questions
from .statistics import SIGNIFICANT, student_p, student_t
from .view import View

WIDEST = 0.06
"""Nats: where the two-sided 90 % interval of the mean is wider, nothing is said any more."""
FARTHEST = 10.0
"""Times the largest size, beyond which nothing is said however narrow the interval is."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """The section ``law`` of a matrix file."""

    questions: tuple[str, ...]
    """One for each size, whose first row is what is compared with."""
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """Least squares over points (x, y), x the base-ten logarithm of active weights."""

    start: float
    slope: float
    """Nats for ten times as many active weights."""
    points: tuple[tuple[float, float], ...]

    @staticmethod
    def of(points: Sequence[tuple[float, float]]) -> Line | None:
        """None of fewer than three points, or of points of a single size."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if len(points) < 3 or max(xs) - min(xs) < 1e-6:
            return None
        middle, height = fmean(xs), fmean(ys)
        slope = sum((x - middle) * (y - height) for x, y in points) / sum((x - middle) ** 2 for x in xs)
        return Line(height - slope * middle, slope, tuple(points))

    def at(self, x: float) -> float:
        """The line's value, in nats."""
        return self.start + self.slope * x

    @property
    def slope_error(self) -> float:
        """Standard error of the slope."""
        return self._deviation() / math.sqrt(self._spread())

    @property
    def p(self) -> float:
        """Two-sided p that the slope is 0."""
        error = self.slope_error
        return student_p(self.slope / error, len(self.points) - 2) if error else float(self.slope == 0)

    def half_width(self, x: float) -> float:
        """Half of the two-sided 90 % interval of the line's mean at ``x``."""
        apart = (x - fmean(x for x, _ in self.points)) ** 2 / self._spread()
        error = self._deviation() * math.sqrt(1 / len(self.points) + apart)
        return student_t(0.1, len(self.points) - 2) * error

    def reach(self) -> float:
        """The largest x of which something is said."""
        largest = max(x for x, _ in self.points)
        tried = (largest + math.log10(FARTHEST) * step / 100 for step in range(101))
        said = [x for x in tried if 2 * self.half_width(x) <= WIDEST]
        return max(said, default=largest)

    def _spread(self) -> float:
        middle = fmean(x for x, _ in self.points)
        return sum((x - middle) ** 2 for x, _ in self.points)

    def _deviation(self) -> float:
        return math.sqrt(sum((y - self.at(x)) ** 2 for x, y in self.points) / (len(self.points) - 2))


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the section ``law`` of a matrix file, whose other sections are sound."""
    if not content.get("law"):
        return []
    found: list[str] = []
    law, sound = build(Law, content["law"], "law", found)
    return found + (list(_wrong(law, content)) if sound else [])


def _wrong(law: Law, content: Mapping[str, Any]) -> Iterator[str]:
    for key, names in (("questions", law.questions), ("methods", law.methods)):
        known = list(content.get(key) or {})
        yield from (f"law.{key} has '{name}'{nearest(name, known) or ', which is not defined'}" for name in names
                    if name not in known)  # fmt: skip
        if not names:
            yield f"law.{key} is empty"
    asked = {question.name: question for question in questions(content)}
    for method in law.methods:
        rows = {name: [row.method for row in asked[name].rows[1:]] for name in law.questions if name in asked}
        yield from (f"law.methods has '{method}', which is no row of {name} beside its first" for name in rows
                    if method in (content.get("methods") or {}) and method not in rows[name])  # fmt: skip


def points(view: View, law: Law, method: str) -> list[tuple[float, float]]:
    """(log10 of active weights, loss over the first row) of each seed and size."""
    found = []
    for question, rows in answered(view).items():
        row = next((row for row in rows[1:] if row.row.method == method), None)
        if question.name in law.questions and row is not None:
            found += _gaps(row, rows[0])
    return found


def _gaps(row: Answer, first: Answer) -> list[tuple[float, float]]:
    weights = row.mean(lambda cell: cell.get("active_weights"))
    seeds = sorted(row.losses.keys() & first.losses.keys())
    return [(math.log10(weights), row.losses[seed] - first.losses[seed]) for seed in seeds] if weights else []


def section(view: View, prefix: Path) -> tuple[list[str], list[Path]]:
    """The part of the page and its figure; nothing where no line can be drawn."""
    if not view.matrix.get("law"):
        return [], []
    law = build(Law, view.matrix["law"], "law", [])[0]
    lines = {method: line for method in law.methods if (line := Line.of(points(view, law, method))) is not None}
    if not lines:
        return [], []
    message = "; ".join(_sentence(method, line) for method, line in lines.items())
    path = prefix.with_name(f"{prefix.name}-law.png")
    _draw(view, lines, message, path)
    heads = ["method", "sizes", "points", "nats over the first row for ten times the weights", "standard error", "p",
             "drawn up to"]  # fmt: skip
    rows = table(heads, [_row(method, line) for method, line in lines.items()])
    about = (
        "A straight line over the logarithm of active weights, by least squares over seeds. Sizes within a decade fix "
        "no law. The interval counts seeds and not sizes: what all seeds of a size share, such as a learning rate that "
        "is tuned badly, is not in it. Beyond the largest size the line is drawn as far as its two-sided 90 % interval "
        f"is at most {WIDEST:g} nats wide, and no farther than {FARTHEST:g} times that size."
    )
    return ["## How does the gain move with size?", f"**{message}.** {about}", rows,
            f"![{message}](images/{path.name})"], [path]  # fmt: skip


def _sentence(method: str, line: Line) -> str:
    if line.p >= SIGNIFICANT:
        return (
            f"{method}: no change of the gain with size shows ({line.slope:+.3f} ± {line.slope_error:.3f} nats for ten "
            f"times the weights, p = {line.p:.2g})"
        )
    way = "grows" if line.slope < 0 else "falls"
    return f"{method}: the gain {way} by {abs(line.slope):.3f} nats for ten times the weights (p = {line.p:.2g})"


def _row(method: str, line: Line) -> list[str]:
    sizes = sorted({x for x, _ in line.points})
    return [method, ", ".join(f"{10**x:,.0f}" for x in sizes), str(len(line.points)), f"{line.slope:+.4f}",
            f"{line.slope_error:.4f}", f"{line.p:.2g}", f"{10 ** line.reach():,.0f} active weights"]  # fmt: skip


def _draw(view: View, lines: Mapping[str, Line], message: str, path: Path) -> None:
    methods: Mapping[str, Any] = view.matrix.get("methods") or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    below = "points: seeds; line: least squares, dashed beyond the largest size; band: 90 % interval of its mean"
    with style.picture(path, (8.0, 3.6), message, below) as figure:
        axes = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
        for axis, (method, line) in zip(axes, lines.items(), strict=True):
            color = style.COLORS[kind(methods.get(method) or {})]
            first, last = min(x for x, _ in line.points), line.reach()
            xs = [first + (last - first) * step / 60 for step in range(61)]
            mean = [line.at(x) for x in xs]
            half = [line.half_width(x) for x in xs]
            low, high = (
                [m - h for m, h in zip(mean, half, strict=True)],
                [m + h for m, h in zip(mean, half, strict=True)],
            )
            style.band(axis, [10**x for x in xs], low, high, color)
            inside = sum(x <= max(x for x, _ in line.points) for x in xs)
            for part, dashes in ((slice(0, inside), "-"), (slice(max(0, inside - 1), None), "--")):
                axis.plot([10**x for x in xs[part]], mean[part], dashes, color=color)
            axis.plot([10**x for x, _ in line.points], [y for _, y in line.points], ".", color=style.MUTED)
            axis.axhline(0.0, color=style.MUTED, linewidth=0.9)
            axis.set_xscale("log")
            sizes = sorted({10**x for x, _ in line.points})
            axis.set_xticks(sizes, [short_count(size) for size in sizes])
            axis.minorticks_off()
            axis.set_title(method)
            axis.set_xlabel("active weights")
        axes[0].set_ylabel("nats over the dense model")
