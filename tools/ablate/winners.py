"""Which value of a setting the measurements speak for: the present one stays, unless another is surely better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .answers import Answer, answered
from .statistics import Difference
from .tables import markdown
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
    """Another setting and what has to have come of it, for this choice to be the one that counts."""


CHOICES = (
    Choice("optimizer.beta2", "optimizer", ("1 x 1, b2 0.999", 0.999), ("1 x 1", 0.95)),
    Choice("optimizer.weight_decay", "optimizer", ("1 x 1, no decay", 0.0), ("1 x 1", 0.1)),
    Choice("model.initializer", "exponent", ("1 x 1, init 0.02", "fixed"), ("1 x 1", "scaled")),
    Choice(
        "sparsity.lr_exponent", "exponent", ("1 x 1, e = 0.5", 0.5), ("1 x 1", 0.0), ("model.initializer", "scaled")
    ),
    Choice(
        "sparsity.lr_exponent",
        "exponent",
        ("1 x 1, init 0.02, e = 0.5", 0.5),
        ("1 x 1, init 0.02", 0.0),
        ("model.initializer", "fixed"),
    ),
    Choice("sparsity.fan_in_init", "exponent", ("1 x 1", True), ("1 x 1, init not by density", False)),
    Choice("sparsity.distribution", "densities-and-schedules", ("1 x 1", "uniform"), ("1 x 1 ERK", "erk")),
    Choice("sparsity.growth", "updates-how", ("1 x 1 SMET", "random"), ("1 x 1 SMET, RigL growth", "gradient")),
)  # fmt: skip
"""Settings whose rows configs/ablations/budget.yaml has; what another waits for stands behind it."""


@dataclass(frozen=True)
class Decision:
    """What came of a choice."""

    choice: Choice
    over: Difference
    """Validation loss of the other value minus that of the present one."""
    undecided: str = ""
    """Why it decides nothing, whatever the losses are."""

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
    found = answered(view)
    asked = {question.name: question for question in found}
    made: dict[str, Decision] = {}
    for choice in CHOICES:
        question = asked.get(choice.question)
        counts = choice.where is None or (known := made.get(choice.where[0])) and known.value == choice.where[1]
        if question is None or not counts:
            continue
        over = _difference(choice, {row.row.method: row for row in found[question]})
        if over is not None:
            made[choice.key] = Decision(choice, over, _undecided(view, choice, len(question.seeds) - over.count))
    return list(made.values())


def _undecided(view: View, choice: Choice, missing: int) -> str:
    if missing:
        return f"{missing} of its seeds are missing or diverged"
    if view.matrix["methods"][choice.present[0]].get("tuned_as") == choice.other[0]:
        return "what stays was run at the other's learning rate"
    return ""


def _difference(choice: Choice, rows: Mapping[str, Answer]) -> Difference | None:
    other, present = (rows.get(method) for method, _ in (choice.other, choice.present))
    return None if other is None or present is None else Difference.of(other.losses, present.losses)


def preset(view: View) -> dict[str, dict[str, Any]]:
    """Section to key to the value, of settings that the measurements change: ``configs/presets/measured.yaml``."""
    found: dict[str, dict[str, Any]] = {}
    for decision in filter(lambda one: one.changed, decisions(view)):
        section, _, key = decision.choice.key.partition(".")
        found.setdefault(section, {})[key] = decision.value
    return found


def section(view: View) -> list[str]:
    """The part of the page."""
    made = decisions(view)
    if not made:
        return []
    heads = ["setting", "the paper's, or before", "tried", "tried minus before", "p", "seeds", "default now"]
    return [
        "## What follows for the defaults",
        "The files in `configs/` and `smet config new` have these (`configs/presets/measured.yaml`); the paper's own "
        "are one word away (`configs/presets/paper.yaml`, `smet config new --preset paper`). A default changes only "
        "where the value that was tried is significantly better, in a comparison that the matrix file had named, at "
        "all of its seeds, and not where what stays was run at the learning rate of what was tried.",
        markdown(heads, [_row(decision) for decision in made]),
    ]


def _row(decision: Decision) -> list[str]:
    choice, over = decision.choice, decision.over
    said = _words(decision.value) + (f" ({decision.undecided})" if decision.undecided else "")
    return [
        f"`{choice.key}`", _words(choice.present[1]), _words(choice.other[1]), f"{over.mean:+.4f}",
        "-" if over.p is None else f"{over.p:.2g}", str(over.count), f"**{said}**" if decision.changed else said,
    ]  # fmt: skip


def _words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
