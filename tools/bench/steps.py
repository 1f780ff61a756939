"""Step times of all engines on the same batches in turn, and of topology updates."""

from __future__ import annotations

from typing import Any

from tools.bench.clock import interleaved
from tools.bench.figures import Figure
from tools.bench.session import Session
from tools.bench.spread import median, ratios

WARM_UP = 2


def measure(session: Session) -> dict[str, list[float]]:
    """Seconds per step of every engine and per topology update, round by round. Collective."""
    batches, sides = session.batches, session.sides
    for side in sides.values():
        for _ in range(WARM_UP):
            side.step(batches)
    session.smet.topology.update()
    actions: dict[str, Any] = {name: (lambda side=side: side.step(batches)) for name, side in sides.items()}
    times = 1 if session.options.quick else 2
    rounds = max(2, session.options.steps // times)
    seconds = interleaved(session.layout, actions, rounds, times, session.tick)
    updates = {"step": lambda: session.smet.step(batches), "update": session.smet.topology.update}
    few = interleaved(session.layout, updates, max(2, rounds // 2), 1, session.tick)
    return {**seconds, "update": few["update"], "step beside update": few["step"]}


def figures(seconds: dict[str, list[float]], dense: str, other: str | None) -> list[Figure]:
    """From what ``measure`` returned.

    Args:
        dense: the faster dense engine.
        other: the slower one.
    """
    against = f"against dense with {dense}"
    made = [
        median("dense_step_seconds", seconds[dense], f"with {dense}"),
        median("step_time", ratios(seconds["SMET"], seconds[dense]), against),
        median("step_time_dense_residency", ratios(seconds["SMET dense residency"], seconds[dense]), against),
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
