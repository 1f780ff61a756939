"""The fastest of a few configurations of a kernel, measured once and remembered while the process lives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import torch

Config = TypeVar("Config")
ROUNDS, CALLS = 5, 4
chosen: dict[Hashable, object] = {}
"""By key; see ``fastest``."""


def fastest(
    key: Hashable, candidates: Callable[[], Sequence[Config]], launch: Callable[[Config], object], device: torch.device
) -> Config:
    """The candidate whose ``launch`` takes the least time on ``device``; without a GPU the first one.

    Candidates that need more of a multiprocessor than it has are passed over.

    Args:
        key: what the choice depends on, the device included; it is made once for each.
        candidates: asked for when there is a choice to make.

    Raises:
        RuntimeError: none can run.
    """
    known = chosen.get(key)
    if known is None:
        known = chosen[key] = candidates()[0] if device.type != "cuda" else _measured(candidates(), launch)
    return known  # type: ignore[return-value]


def _measured(candidates: Sequence[Config], launch: Callable[[Config], object]) -> Config:
    from triton.runtime.errors import OutOfResources

    times: dict[Config, float] = {}
    why: Exception | None = None
    for candidate in candidates:
        try:
            times[candidate] = _milliseconds(lambda candidate=candidate: launch(candidate))  # type: ignore[misc]
        except OutOfResources as error:
            why = error
    if not times:
        raise RuntimeError(f"no configuration of the kernel fits this GPU: {why}")
    return min(times, key=times.__getitem__)


def _milliseconds(action: Callable[[], object]) -> float:
    for _ in range(2):
        action()
    taken = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(CALLS):  # more than one: the device is not to wait for Python
            action()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / CALLS)
    return median(taken)
