"""Robust statistics of the recent past, to tell a spike from noise."""

from __future__ import annotations

import math
from collections import deque
from statistics import median as middle_of
from typing import Any

MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""


class RobustWindow:
    """Median and spread of the last ``size`` values. One outlier moves neither.

    Args:
        size: values kept.
        floor: smallest spread, as a share of |median|: a quiet past does not turn small noise into spikes.
    """

    def __init__(self, size: int, floor: float):
        self.floor = floor
        self.values: deque[float] = deque(maxlen=size)

    @property
    def ready(self) -> bool:
        """Whether there is past enough to judge by."""
        return len(self.values) >= min(16, self.values.maxlen or 16)

    @property
    def median(self) -> float:
        """Median of the values."""
        return middle_of(self.values)

    def add(self, value: float) -> None:
        """Remember a value; one that is not finite is left out."""
        if math.isfinite(value):
            self.values.append(value)

    def deviations(self, value: float) -> float:
        """How many robust standard deviations ``value`` lies above the median; 0 while not ``ready``."""
        if not self.ready:
            return 0.0
        if not math.isfinite(value):
            return math.inf
        middle = self.median
        spread = MAD_TO_DEVIATION * middle_of(abs(other - middle) for other in self.values)
        return (value - middle) / max(spread, self.floor * abs(middle), 1e-12)

    def state_dict(self) -> list[Any]:
        """The values, oldest first."""
        return list(self.values)

    def load_state_dict(self, values: list[Any]) -> None:
        """Restore ``state_dict``."""
        self.values.clear()
        self.values.extend(values)
