"""Timing in several ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pretrain.layout import Layout


def now(layout: Layout) -> float:
    """Seconds, once all that was asked of the device is done."""
    if layout.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(layout: Layout, action: Callable[[], Any], times: int = 1) -> float:
    """Seconds that ``action`` takes, on average over ``times``; all ranks begin together. Collective."""
    layout.barrier()
    begin = now(layout)
    for _ in range(times):
        action()
    return (now(layout) - begin) / times


def interleaved(
    layout: Layout, actions: dict[str, Callable[[], Any]], rounds: int, times: int, tick: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of every action in every round; each round takes them in turn. Collective."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            seconds[name].append(timed(layout, action, times))
            tick()
    return seconds
