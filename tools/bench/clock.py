"""Timing in several ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pretrain.layout import Layout


def now(layout: Layout) -> float:
    """Seconds, once all that was asked of the device is done."""
    if layout.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(layout: Layout, action: Callable[[], Any], times: int = 1) -> tuple[float, float]:
    """Seconds on the clock and of this process's CPU time that ``action`` takes, on average over ``times``.

    All ranks begin together. Collective.
    """
    layout.barrier()
    begin, cpu = now(layout), time.process_time()
    for _ in range(times):
        action()
    return (now(layout) - begin) / times, (time.process_time() - cpu) / times


class Rounds:
    """Seconds of several actions that took turns, by action and round."""

    def __init__(self, names: Iterable[str]):
        self.wall: dict[str, list[float]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in self.wall}
        """CPU time of this process, all threads: what other programs on the machine disturb less."""


def interleaved(
    layout: Layout, actions: dict[str, Callable[[], Any]], rounds: int, times: int, tick: Callable[[], Any]
) -> Rounds:
    """Every action in every round; each round takes them in turn. Collective."""
    found = Rounds(actions)
    for _ in range(rounds):
        for name, action in actions.items():
            wall, cpu = timed(layout, action, times)
            found.wall[name].append(wall)
            found.cpu[name].append(cpu)
            tick()
    return found
