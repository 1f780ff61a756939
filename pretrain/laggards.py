"""Who holds a run up: a verdict from what each rank's heartbeat says."""

from __future__ import annotations

import math
import os
from typing import Any

State = dict[str, Any]
"""What a rank's heartbeat file holds, see ``Heartbeat.state``."""
WAITING = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")
"""A main thread whose innermost frames are in these files waits for other ranks ..."""
READING = f"torch{os.sep}distributed{os.sep}checkpoint{os.sep}"
"""... but not in these, which read files."""


def is_state(content: Any) -> bool:
    """Whether ``content`` can be what a rank wrote: the folder is shared, and a verdict must not fail over a file."""
    numbers = ("pid", "step", "progress")
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), str) for key in ("host", "phase"))
        and all(isinstance(content.get(key), int) for key in numbers)
        and isinstance(content.get("alive"), (int, float))
        and (not content.get("stuck") or isinstance(content.get("stack"), list))
    )


def is_waiting(file: str) -> bool:
    """Whether the main thread waits for other ranks whose stack ends with a frame of ``file``."""
    return any(place in file for place in WAITING) and READING not in file


def is_deadlock(states: dict[int, State]) -> bool:
    """Whether all ranks stand in the same step and wait for each other, while none of them sends or computes."""
    alike = {(state["phase"], state["step"], state["progress"]) for state in states.values()}
    return len(alike) == 1 and all(state.get(key) for state in states.values() for key in ("stuck", "waiting", "idle"))


def laggards(states: dict[int, State], world_size: int, since: float = math.inf) -> dict[str, Any]:
    """Which ranks hold the others up, why that is thought, and where they are.

    Ranks that show no sign of life come first, then those that still move, then those that got least far, then,
    among equals, those that do not wait for others.

    Args:
        since: ranks that wrote after this time are alive, and move if they are not stuck.
    """
    missing = [rank for rank in range(world_size) if rank not in states]
    moving = [rank for rank, state in states.items() if not state.get("stuck")]
    silent = [rank for rank in moving if states[rank].get("alive", 0.0) <= since]
    if missing or silent:
        ranks, why = missing + silent, "shows no sign of life (process gone, frozen, or host cut off)"
    elif moving:
        ranks, why = moving, "got there later, and is at work"
    else:
        least = min(state["progress"] for state in states.values())
        ranks = [rank for rank, state in states.items() if state["progress"] == least]
        busy = [rank for rank in ranks if not states[rank].get("waiting")]
        if len(ranks) < world_size:
            why = "got least far"
        elif busy and len(busy) < world_size:
            ranks, why = busy, "does not wait for the others"
        elif not busy:
            calls = (f"rank {rank} at {_call(states[rank])}" for rank in ranks[:8])
            why = f"all ranks wait for each other, {', '.join(calls)}; see the stacks in heartbeat/"
        else:
            why = "all ranks are at the same place; see the stacks in heartbeat/"
    places = [_place(rank, states.get(rank)) for rank in ranks[:8]]
    return {"ranks": ranks, "why": why, "text": f"{'; '.join(places)}: {why}", "stacks": _stacks(ranks, states)}


def own_report(state: State) -> dict[str, Any]:
    """The same of a rank that knows of no other."""
    why = "waits for others" if state["waiting"] else "does not wait for others"
    return {"text": f"{_place(state['rank'], state)}: {why}; at {state['stack'][-1]}"}


def _call(state: State) -> str:
    """Who made the call in which a rank waits, such as ``stage3.py:1234 step``."""
    own = [frame for frame in map(str, state["stack"]) if not is_waiting(frame)] or state["stack"] or ["?"]
    return str(own[-1]).rpartition(os.sep)[2]


def _place(rank: int, state: State | None) -> str:
    if state is None:
        return f"rank {rank}, which never wrote a heartbeat"
    return f"rank {rank} on {state['host']} (pid {state['pid']}) in {state['phase']} of step {state['step'] + 1}"


def _stacks(ranks: list[int], states: dict[int, State]) -> dict[str, list[str]]:
    return {str(rank): states[rank]["stack"][-12:] for rank in ranks[:4] if "stack" in states.get(rank, {})}
