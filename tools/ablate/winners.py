"""Which value of a setting the measurements speak for: the present one stays, unless another is surely better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..markdown import table
from .answers import answered
from .statistics import Difference
from .view import View


@dataclass(frozen=True)
class Choice:
    """One setting, and the rows that differ in it alone."""

    key: str
    question: str
    present: tuple[str, Any]
    """(method of the row, value): the paper's, or what the product had before."""
    other: tuple[str, Any]
    where: tuple[str, Any] | None = None
    """Another setting and what has to have come of it, for this choice to count."""
    beside: str = ""
    """What a reader of the row has to know."""


SCALED = ("model.initializer", "scaled")
CHOICES = (
    Choice("model.initializer", "exponent", ("1 x 1, init 0.02", "fixed"), ("1 x 1", "scaled")),
    Choice("optimizer.beta2", "optimizer", ("1 x 1, b2 0.999", 0.999), ("1 x 1", 0.95), SCALED),
    Choice("optimizer.weight_decay", "optimizer", ("1 x 1, no decay", 0.0), ("1 x 1", 0.1), SCALED),
    Choice("sparsity.lr_exponent", "exponent", ("1 x 1, e = 0.5", 0.5), ("1 x 1", 0.0), SCALED),
    Choice(
        "sparsity.lr_exponent",
        "exponent",
        ("1 x 1, init 0.02, e = 0.5", 0.5),
        ("1 x 1, init 0.02", 0.0),
        ("model.initializer", "fixed"),
    ),
    Choice("sparsity.fan_in_init", "exponent", ("1 x 1", True), ("1 x 1, init not by density", False), SCALED),
    Choice("sparsity.distribution", "densities-and-schedules", ("1 x 1", "uniform"), ("1 x 1 ERK", "erk"), SCALED),
    Choice("sparsity.growth", "updates-how", ("1 x 1 SMET", "random"), ("1 x 1 SMET, RigL growth", "gradient"), SCALED),
    Choice("optimizer.beta2", "optimizer-fixed", ("1 x 1, init 0.02, b2 0.999", 0.999), ("1 x 1, init 0.02", 0.95)),
    Choice("optimizer.weight_decay", "optimizer-fixed", ("1 x 1, init 0.02, no decay", 0.0), ("1 x 1, init 0.02", 0.1),
           None, "but 0.1 from 3b up, as models of that size are trained"),
    Choice("sparsity.permute", "which-permutation", ("16 x 16, not permuted", "none"), ("16 x 16", "inputs"), None,
           "`configs/tiles` and the quickstart permute already"),
    Choice("sparsity.prune", "which-update", ("1 x 1 SMET", "magnitude"), ("1 x 1 SMET, saliency", "saliency")),
    Choice("sparsity.growth", "which-update", ("1 x 1 SMET", "random"), ("1 x 1 SMET, momentum growth", "momentum")),
    Choice("sparsity.prune_start", "which-update", ("1 x 1 SMET", 0.2), ("1 x 1 SMET, prune 0.1", 0.1)),
    Choice("sparsity.prune_start", "which-update", ("1 x 1 SMET", 0.2), ("1 x 1 SMET, prune 0.4", 0.4)),
)  # fmt: skip
"""Settings whose rows files of configs/ablations have; what another waits for stands behind it."""


@dataclass(frozen=True)
class Decision:
    """What came of a choice."""

    choice: Choice
    over: Difference
    """Validation loss of the other value minus that of the present one."""
    undecided: str = ""
    """Why it decides nothing, whatever the losses are."""
    handicap: str = ""
    """What speaks for the other value beyond its losses."""

    @property
    def changed(self) -> bool:
        """Whether the other value is significantly better."""
        return not self.undecided and self.over.significant and self.over.mean < 0

    @property
    def value(self) -> Any:
        """What the measurements speak for."""
        return (self.choice.other if self.changed else self.choice.present)[1]


def decisions(view: View) -> list[Decision]:
    """Of every choice that counts and whose rows were measured."""
    asked = {question.name: (len(question.seeds), {row.row.method: row for row in rows})
             for question, rows in answered(view).items()}  # fmt: skip
    made: list[Decision] = []
    for choice in CHOICES:
        seeds, rows = asked.get(choice.question, (0, {}))
        other, present = (rows.get(method) for method, _ in (choice.other, choice.present))
        over = None if other is None or present is None else other.minus(present)
        if over is not None:
            missing = seeds - over.count
            undecided = _undecided(view, choice, missing) or _elsewhere(choice, made)
            made.append(Decision(choice, over, undecided, "" if undecided else _handicap(view, choice)))
    return made


def _elsewhere(choice: Choice, made: Sequence[Decision]) -> str:
    """Where it was measured at a value of another setting that is not the one in use."""
    if choice.where is None or _settled(made, choice.where[0]) == choice.where[1]:
        return ""
    return f"measured at `{choice.where[0]}` {_words(choice.where[1])}, which is not the default"


def _handicap(view: View, choice: Choice) -> str:
    if view.matrix["methods"][choice.other[0]].get("tuned_as") == choice.present[0]:
        return "what was tried was run at the learning rate of what stays"
    return ""


def _settled(made: Sequence[Decision], key: str) -> Any:
    """The value of ``key`` that they come to: of several that are better, the best; None where none is about it."""
    about = sorted((decision for decision in made if decision.choice.key == key), key=_order)
    return about[0].value if about else None


def _order(decision: Decision) -> tuple[bool, float]:
    return not decision.changed, decision.over.mean


def _undecided(view: View, choice: Choice, missing: int) -> str:
    if missing:
        return f"{missing} of its seeds are missing or diverged"
    if view.matrix["methods"][choice.present[0]].get("tuned_as") == choice.other[0]:
        return "what stays was run at the other's learning rate"
    return ""


def preset(views: Iterable[View]) -> dict[str, dict[str, Any]]:
    """Section to key to the value, of settings that pages change: ``configs/presets/measured.yaml``."""
    made = [decision for view in views for decision in decisions(view)]
    found: dict[str, dict[str, Any]] = {}
    for whole in dict.fromkeys(decision.choice.key for decision in made if decision.changed):
        section, _, key = whole.partition(".")
        found.setdefault(section, {})[key] = _settled(made, whole)
    return found


def section(view: View) -> list[str]:
    """What the page says of settings: nothing where none was compared."""
    made = decisions(view)
    if not made:
        return []
    heads = ["setting", "the paper's, or before", "tried", "tried minus before", "p", "seeds", "default now"]
    return [
        "The files in `configs/` and `smet config new` have these (`configs/presets/measured.yaml`); the paper's own "
        "are one word away (`configs/presets/paper.yaml`, `smet config new --preset paper`). A default changes only "
        "where the value that was tried is significantly better, in a comparison that the matrix file had named, at "
        "all of its seeds, and not where what stays was run at the learning rate of what was tried.",
        table(heads, [_row(decision) for decision in made]),
    ]


def _row(decision: Decision) -> list[str]:
    choice, over = decision.choice, decision.over
    notes = filter(None, [decision.undecided, decision.handicap, choice.beside])
    value = "not decided here" if decision.undecided else _words(decision.value)
    said = " ".join([value, *(f"({note})" for note in notes)])
    return [
        f"`{choice.key}`", _words(choice.present[1]), _words(choice.other[1]), f"{over.mean:+.4f}",
        "-" if over.p is None else f"{over.p:.2g}", str(over.count), f"**{said}**" if decision.changed else said,
    ]  # fmt: skip


def _words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
