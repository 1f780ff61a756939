"""What the operations of a step take on a CPU, with its small steps fused, and without."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from pretrain.models import fused

from .engines import Side
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
                found[f"{name}, {which}"] = _profiled(session.sides[name], session)
            finally:
                fused.choose(fused.FUSED)
    return found


def _profiled(side: Side, session: Session) -> dict[str, float]:
    side.step(session.batches)
    session.layout.barrier()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(STEPS):
            side.step(session.batches)
    session.tick()
    return shares(profile.events())


def shares(events: Any) -> dict[str, float]:
    """Seconds of one step by kind, from a profile of ``STEPS``."""
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[_kind(event)] += event.self_cpu_time_total / 1e6 / STEPS
    return {kind: spent.get(kind, 0.0) for kind in (*OPERATIONS, REST)}


def _kind(event: Any) -> str:
    """That of the outermost operation around ``event`` which is of one."""
    found = REST
    while event is not None:
        found = next((kind for kind, parts in OPERATIONS.items() if any(part in event.name for part in parts)), found)
        event = event.cpu_parent
    return found
