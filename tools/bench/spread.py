"""Medians with quartiles, and ratios of interleaved measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .figures import Figure


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def median(name: str, values: Sequence[float], note: str = "") -> Figure:
    """The figure ``name``: median and quartiles of ``values``."""
    return Figure(name=name, value=statistics.median(values), spread=quartiles(values), note=note)


def ratios(own: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round ``own / base``: what disturbed a round disturbed both."""
    return [a / b for a, b in zip(own, base, strict=True)]
