"""Step times of all engines on the same batches in turn, and of topology updates."""

from __future__ import annotations

from typing import Any

from .clock import interleaved
from .figures import Figure
from .options import Options
from .session import Session
from .spread import median, ratios

WARM_UP = 2
SESSIONS = 3


Seconds = dict[str, dict[str, list[float]]]
"""``wall`` and ``cpu`` -> action -> seconds by round."""


def times(options: Options) -> int:
    """Steps that an engine takes before the next one's turn."""
    return 1 if options.quick else 2


def sessions(options: Options) -> int:
    """Sets of processes that the steps are spread over: where its memory happens to lie makes an engine faster or
    slower by several per cent for as long as it lives."""
    return 1 if options.quick else SESSIONS


def rounds(options: Options) -> int:
    """Turns of each engine in one session."""
    return max(2, options.steps // times(options) // sessions(options))


def few_rounds(options: Options) -> int:
    """Turns of topology updates."""
    return max(2, rounds(options) // 2)


def measure(session: Session) -> Seconds:
    """Seconds per step of every engine and per topology update, round by round. Collective."""
    batches, sides = session.batches, session.sides
    for side in sides.values():
        for _ in range(WARM_UP):
            side.step(batches)
    session.smet.topology.update()
    actions: dict[str, Any] = {name: (lambda side=side: side.step(batches)) for name, side in sides.items()}
    options = session.options
    seconds = interleaved(session.layout, actions, rounds(options), times(options), session.tick)
    updates = {"step": lambda: session.smet.step(batches), "update": session.smet.topology.update}
    few = interleaved(session.layout, updates, few_rounds(options), 1, session.tick)
    both = {"wall": (seconds.wall, few.wall), "cpu": (seconds.cpu, few.cpu)}
    return {
        kind: {**own, "update": rare["update"], "step beside update": rare["step"]}
        for kind, (own, rare) in both.items()
    }


def pooled(parts: list[Seconds]) -> Seconds:
    """The rounds of several sessions as those of one."""
    return {
        kind: {name: [value for part in parts for value in part[kind][name]] for name in parts[0][kind]}
        for kind in parts[0]
    }


def figures(measured: Seconds, dense: str, other: str | None) -> list[Figure]:
    """From what ``measure`` returned.

    Args:
        dense: the faster dense engine.
        other: the slower one.
    """
    against = f"against dense with {dense}"
    seconds, cpu = measured["wall"], measured["cpu"]
    made = [
        median("dense_step_seconds", seconds[dense], f"with {dense}"),
        median("step_time", ratios(seconds["SMET"], seconds[dense]), against),
        median("step_time_dense_residency", ratios(seconds["SMET dense residency"], seconds[dense]), against),
        median("step_cpu_time", ratios(cpu["SMET"], cpu[dense]), "less disturbed by other programs; waiting is free"),
        median(
            "topology_update", ratios(seconds["update"], seconds["step beside update"]), "all layers, with publishing"
        ),
    ]
    if other is not None:
        both = ratios(seconds["DeepSpeedCPUAdam"], seconds["torch fused AdamW"])
        made.append(median("dense_optimizer", both, f"{dense} is the faster one"))
    else:
        made.append(Figure(name="dense_optimizer", value=None, note="DeepSpeedCPUAdam cannot be built here"))
    return made
