"""Step times with smaller micro-batches, where what comes with weights weighs more beside the products."""

from __future__ import annotations

from statistics import median
from typing import Any

from . import steps
from .clock import interleaved
from .options import Options
from .session import Session
from .spread import quartiles, ratios
from .steps import Seconds

SMALLER = 3
"""Each of so many micro-batches has half the rows of the one before."""


def measure(session: Session) -> dict[str, Seconds]:
    """Tokens per rank and step -> seconds, round by round, of every engine. Collective."""
    options, found = session.options, {}
    for half in range(1, SMALLER + 1):
        rows = options.micro_batch >> half
        if not rows:
            break
        batches = [batch[:rows] for batch in session.batches]
        actions: dict[str, Any] = {
            name: (lambda side=side, batches=batches: side.step(batches)) for name, side in session.sides.items()
        }
        for action in actions.values():
            action()
        taken = interleaved(session.layout, actions, steps.rounds(options), 1, session.tick)
        found[str(rows * options.sequence)] = {"wall": taken.wall, "cpu": taken.cpu}
    return found


def ticks(options: Options, engines: int) -> int:
    """How often ``measure`` reports progress."""
    sizes = sum(options.micro_batch >> half > 0 for half in range(1, SMALLER + 1))
    return sizes * engines * steps.rounds(options)


def table(measured: dict[str, Seconds], dense: str) -> dict[str, dict[str, Any]]:
    """Tokens per rank and step -> median seconds of ``dense``, and median and quartiles of each SMET engine's ratio."""
    return {tokens: _ratios(seconds, dense) for tokens, seconds in measured.items()}


def _ratios(seconds: Seconds, dense: str) -> dict[str, Any]:
    wall, cpu = seconds["wall"], seconds["cpu"]
    found: dict[str, Any] = {"dense_seconds": median(wall[dense])}
    for key, kind, name in (
        ("step", wall, "SMET"), ("dense_residency", wall, "SMET dense residency"), ("cpu", cpu, "SMET"),
    ):  # fmt: skip
        values = ratios(kind[name], kind[dense])
        found[key] = {"median": median(values), "quartiles": list(quartiles(values))}
    return found
