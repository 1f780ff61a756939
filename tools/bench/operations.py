"""What the operations of a step take on a CPU, with its small steps fused, and without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pretrain.layout import Layout
from pretrain.models import fused

from .figures import OPERATIONS, REST
from .session import Session

STEPS = 2


def measure(session: Session) -> dict[str, dict[str, float]]:
    """Seconds of CPU time by kind of operation in a step of a dense engine and of SMET, both ways. Collective."""
    dense = next(iter(session.sides))
    found = {}
    for name in (dense, "SMET"):
        for which in (fused.PLAIN, fused.FUSED):
            fused.choose(which)
            try:
                step = partial(session.sides[name].step, session.batches)
                found[f"{name}, {which}"] = profiled(step, session.layout)
                session.tick()
            finally:
                fused.choose(fused.FUSED)
    return found


def profiled(
    step: Callable[[], Any], layout: Layout, kinds: Mapping[str, Sequence[str]] = OPERATIONS
) -> dict[str, float]:
    """Seconds of CPU time of one ``step`` by kind, and of all else. Collective."""
    step()
    layout.barrier()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(STEPS):
            step()
    spent: dict[str, float] = defaultdict(float)
    for event in profile.events():
        spent[_kind(event, kinds)] += event.self_cpu_time_total / 1e6 / STEPS
    return {kind: spent.get(kind, 0.0) for kind in (*kinds, REST)}


def _kind(event: Any, kinds: Mapping[str, Sequence[str]]) -> str:
    """That of the outermost operation around ``event`` which is of one."""
    found = REST
    while event is not None:
        found = next((kind for kind, parts in kinds.items() if any(part in event.name for part in parts)), found)
        event = event.cpu_parent
    return found
