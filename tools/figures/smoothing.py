"""Running means over steps: a smoothed line never comes without the one that was measured, nor without its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW = 40
"""Records; fewer are drawn as they are."""
SHARE = 30
"""A run's steps are so many times the steps that its curves are smoothed over."""


def width_for(steps: Sequence[float]) -> int:
    """Steps to smooth over: 1, 2 or 5 times a power of ten, five records at least; 1 = do not."""
    if len(steps) < FEW:
        return 1
    apart = (max(steps) - min(steps)) / (len(steps) - 1)
    wanted = max(len(steps) / SHARE, 5.0) * max(apart, 0.2) * (1 + 1e-9)
    power = 10 ** math.floor(math.log10(wanted))
    return int(max(n * power for n in (1, 2, 5) if n * power <= wanted))


def smoothed(steps: Sequence[float], values: Sequence[float | None], over: int) -> NDArray[Any]:
    """Mean of what was measured within ``over`` steps around each step; NaN where that step itself has no value.

    At both ends it is the mean of what there is of these steps.

    Args:
        steps: rising.
        values: None where a run diverged.
        over: steps; 1 leaves the values as they are.
    """
    import numpy as np

    at = np.asarray(steps, dtype="float64")
    raw = np.asarray([np.nan if value is None else value for value in values], dtype="float64")
    if over == 1:
        return raw
    known = np.isfinite(raw)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, raw, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    low, high = (np.searchsorted(at, at + side * over / 2, side="right") for side in (-1, 1))
    with np.errstate(invalid="ignore"):
        means = (sums[high] - sums[low]) / np.where(counts[high] > counts[low], counts[high] - counts[low], 1)
    return np.asarray(np.where(known, means, np.nan))


def extremes(steps: Sequence[float], values: Any, most: int = 3000) -> tuple[Any, Any]:
    """A curve of many records by the lowest and the highest of each stretch: the same to the eye, spikes included."""
    import numpy as np

    if len(steps) <= most:
        return steps, values
    raw = np.asarray(values, dtype="float64")
    kept = []
    for part in np.array_split(np.arange(len(raw)), most // 2):
        known = part[np.isfinite(raw[part])]
        kept += sorted({known[raw[known].argmin()], known[raw[known].argmax()]}) if len(known) else [part[0]]
    return np.asarray(steps)[kept], raw[kept]
