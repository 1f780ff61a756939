"""Time that the device spends: launches are recorded once and played back, so that none waits for Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Action = Callable[[], Any]


def seconds(actions: dict[str, Action], rounds: int, calls: int, device: str) -> dict[str, list[float]]:
    """Seconds of one call of each action, round by round; the actions take turns.

    Args:
        calls: between two readings of the clock.
    """
    if device != "cuda":
        played = {name: _on_cpu(action) for name, action in actions.items()}
    else:
        played = {name: _recorded(action, calls) for name, action in actions.items()}
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, play in played.items():
            taken = play()
            if number:  # the first round warms up
                found[name].append(taken)
    return found


def _on_cpu(action: Action) -> Callable[[], float]:
    def play() -> float:
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin

    return play


def _recorded(action: Action, calls: int) -> Callable[[], float]:
    action()  # whatever is made at the first call is made now
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            action()

    def play() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    return play
