"""How the prune fraction goes, and a density that falls: plain functions of (progress, start, end).

``progress`` is the step as a fraction of the last at which the topology may change (of a density: of the last at which
it falls), in [0, 1].
"""

from __future__ import annotations

import math


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float, start: float, end: float) -> float:
    """``start``, whatever ``end`` is."""
    return start


def linear(progress: float, start: float, end: float) -> float:
    """A straight line."""
    return start + (end - start) * progress


def wsd(progress: float, start: float, end: float) -> float:
    """``start`` for the first 80 %, then a straight line."""
    return linear(max(0.0, progress - 0.8) / 0.2, start, end)


def cubic(progress: float, start: float, end: float) -> float:
    """Fast at first, slow in the end (GMP, Zhu and Gupta 2017, arXiv 1710.01878)."""
    return end + (start - end) * (1 - progress) ** 3
