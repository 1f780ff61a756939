"""Means, standard deviations and paired t-tests over few seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value) of ``count`` values."""

    mean: float
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float | None]) -> Spread | None:
        """Of the values that are there; None if none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return Spread(fmean(known), stdev(known) if len(known) > 1 else None, len(known))

    def text(self, digits: int = 3) -> str:
        """``1.234 ± 0.005``; without a deviation where there is but one value."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the seeds that both have; ``p`` is that of a two-sided paired t-test.

    ``upper`` is the upper end of the mean's two-sided 90 % interval, None of a single seed.
    """

    mean: float
    p: float | None
    count: int
    upper: float | None = None

    @staticmethod
    def of(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
        """Over common seeds; None if there are none. ``p`` is None for a single one."""
        gaps = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
        if not gaps:
            return None
        return Difference(fmean(gaps), paired_p(gaps), len(gaps), _upper(gaps))

    @property
    def significant(self) -> bool:
        """Whether the test rejects "no difference" at 5 %."""
        return self.p is not None and self.p < SIGNIFICANT

    def verdict(self) -> str:
        """What the test says, in words."""
        if self.p is None:
            return "one seed, so no test"
        seeds = f"{self.count} seeds, p = {self.p:.2g}" if self.p >= 0.001 else f"{self.count} seeds, p < 0.001"
        return f"{seeds}: {'significant' if self.significant else 'not significant'}"


def means_over_common(losses: Sequence[Mapping[int, float]]) -> list[float]:
    """Mean of each over the seeds that all of them have, or over its own where they have none in common."""
    common = set.intersection(*(set(found) for found in losses))
    return [fmean(loss for seed, loss in found.items() if seed in common or not common) for found in losses]


def _upper(gaps: Sequence[float]) -> float | None:
    if len(gaps) < 2:
        return None
    return fmean(gaps) + student_t(0.1, len(gaps) - 1) * stdev(gaps) / math.sqrt(len(gaps))


def student_t(p: float, freedom: int) -> float:
    """The t whose two-sided tail probability is ``p``: by bisection, to 1e-9 of it."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > p:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2


def paired_p(gaps: Sequence[float]) -> float | None:
    """Two-sided p of Student's t-test that the mean of ``gaps`` is 0; None for fewer than two."""
    if len(gaps) < 2:
        return None
    spread = stdev(gaps)
    if spread == 0:
        return 1.0 if fmean(gaps) == 0 else 0.0
    return student_p(fmean(gaps) / (spread / math.sqrt(len(gaps))), len(gaps) - 1)


def student_p(t: float, freedom: int) -> float:
    """Two-sided tail probability of Student's t, exact for whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if freedom == 1:
        inside = 2 * angle / math.pi
    elif freedom % 2:
        inside = 2 / math.pi * (angle + sine * total)
    else:
        inside = sine * total
    return max(0.0, 1.0 - inside)
