"""What the processes of the benchmark do, and how often they report progress."""

from __future__ import annotations

from typing import Any

from . import batches, breakdown, memory, operations, optimizer, steps, traffic
from .options import Options
from .ranks import Rank
from .session import Session, dense_optimizers


def everything(rank: Rank) -> dict[str, Any]:
    """Everything that is measured on engines; plain data. Collective."""
    session = Session(rank)
    return {
        **_steps(session),
        "sent": traffic.measure(session),
        "at_rest": memory.at_rest(session),
        "where": breakdown.measure(session),
        "operations": operations.measure(session),
        "optimizer": optimizer.measure(session),
    }


def steps_only(rank: Rank) -> dict[str, Any]:
    """Seconds per step of every engine, round by round. Collective."""
    return _steps(Session(rank))


def _steps(session: Session) -> dict[str, Any]:
    return {"seconds": steps.measure(session), "smaller": batches.measure(session)}


def ticks(options: Options) -> int:
    """How often ``everything`` reports progress."""
    return step_ticks(options) + _engines(options) + 4


def step_ticks(options: Options) -> int:
    """How often ``steps_only`` reports progress."""
    own = _engines(options) * steps.rounds(options) + 2 * steps.few_rounds(options)
    return own + batches.ticks(options, _engines(options))


def _engines(options: Options) -> int:
    return 2 + len(dense_optimizers(options))
