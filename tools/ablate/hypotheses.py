"""What a matrix file says beforehand about its own results, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.config.typed import build
from pretrain.errors import nearest

from ..markdown import table
from .statistics import Difference
from .view import View


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """``method`` minus ``against`` in validation loss, seed by seed, is at most this."""

    name: str
    size: str
    method: str
    against: str
    density: float
    mean_at_most: float
    """Nats per token."""
    bound_at_most: float | None = None
    """Of the upper end of the two-sided 90 % interval, nats per token; None = the mean alone decides."""
    against_size: str | None = None
    """Of ``against``, where it is another one; so is ``against_density``."""
    against_density: float | None = None

    def measured(self, view: View) -> Difference | None:
        """What came of it; None if nothing did."""
        own = view.by_seed("validation_loss", self.method, self.size, self.density)
        other = self.density if self.against_density is None else self.against_density
        return Difference.of(own, view.by_seed("validation_loss", self.against, self.against_size or self.size, other))

    def holds(self, found: Difference | None) -> bool | None:
        """None = not measured, or the bound cannot be known of a single seed."""
        if found is None:
            return None
        if self.bound_at_most is None or found.mean > self.mean_at_most:
            return found.mean <= self.mean_at_most
        return None if found.upper is None else found.upper <= self.bound_at_most

    def verdict(self, found: Difference | None) -> str:
        """In words."""
        holds = self.holds(found)
        if holds and found is not None and self.bound_at_most is None and self.mean_at_most < 0:
            return "holds" if found.significant else "holds by its mean, not significant"
        return {None: "not measured", False: "**missed**", True: "holds"}[holds]


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the section ``hypotheses`` of a matrix file."""
    section = content.get("hypotheses") or []
    if not isinstance(section, list) or not all(isinstance(entry, dict) for entry in section):
        return ["hypotheses: expected a list of mappings"]
    found: list[str] = []
    for number, entry in enumerate(section):
        made, _ = build(Hypothesis, entry, f"hypotheses[{number}]", found)
        found += [f"hypotheses[{number}].{wrong}" for wrong in _wrong(made, entry, content)]
    return found


def _wrong(made: Hypothesis, entry: Mapping[str, Any], content: Mapping[str, Any]) -> Iterable[str]:
    names = {"size": "sizes", "against_size": "sizes", "method": "methods", "against": "methods"}
    for key, section in names.items():
        value, known = getattr(made, key), content.get(section) or {}
        if entry.get(key) is not None and value not in known:
            yield f"{key} is {value!r}{nearest(value, known) or ', expected one of ' + ', '.join(map(str, known))}"
    for key in ("density", "against_density"):
        if entry.get(key) is not None and not 0 < getattr(made, key) <= 1:
            yield f"{key} is {getattr(made, key):g}, expected above 0 and at most 1"


def section(view: View) -> list[str]:
    """The part of the page: what does not hold comes first."""
    entries = [Hypothesis(**entry) for entry in view.matrix.get("hypotheses") or []]
    if not entries:
        return []
    judged = [(entry, entry.measured(view)) for entry in entries]
    judged.sort(key=lambda pair: {False: 0, None: 1, True: 2}[pair[0].holds(pair[1])])
    said = f" (sha256 of `{view.results['file']}`: {digest[:16]})" if (digest := view.results.get("sha256")) else ""
    return [
        "## What was expected, and what was found",
        f"Written into the matrix file before its cells ran{said}. A difference is of validation losses, in nats per "
        "token, paired by seed; the bound is the upper end of its two-sided 90 % interval. Where no bound was asked "
        "for, the mean alone decides, and the verdict says whether the test tells it from 0.",
        table(
            ["hypothesis", "difference", "bound", "expected at most", "p", "seeds", "verdict"],
            [_row(entry, found) for entry, found in judged],
        ),
    ]


def _row(entry: Hypothesis, found: Difference | None) -> list[str]:
    expected = f"{entry.mean_at_most:+.4g}" + ("" if entry.bound_at_most is None else f", {entry.bound_at_most:+.4g}")
    verdict = entry.verdict(found)
    if found is None:
        return [entry.name, "-", "-", expected, "-", "0", verdict]
    bound = "-" if found.upper is None else f"{found.upper:+.4f}"
    p = "-" if found.p is None else f"{found.p:.2g}"
    return [entry.name, f"{found.mean:+.4f}", bound, expected, p, str(found.count), verdict]
