"""How the prune fraction goes: plain functions of (progress, start, end).

``progress`` is the step as a fraction of the last at which the topology may change, in [0, 1].
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
