"""Where a step's time goes: clocks around its parts, each counting only what no clock inside it counts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from .clock import timed
from .engines import Side
from .figures import PARTS
from .session import Session


class Clocks:
    """Seconds by part; time inside an inner clock is taken out of the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    @contextmanager
    def around(self, part: str) -> Iterator[None]:
        """Count what happens inside as ``part``."""
        self._inside.append(0.0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            all_of_it = time.perf_counter() - begin
            self.seconds[part] += all_of_it - self._inside.pop()
            if self._inside:
                self._inside[-1] += all_of_it


def measure(session: Session) -> dict[str, dict[str, float]]:
    """Share of each part in the step of every engine, on rank 0. Collective."""
    steps = 1 if session.options.quick else 4
    found = {}
    for name, side in session.sides.items():
        clocks = Clocks()

        def step(side: Side = side, clocks: Clocks = clocks) -> None:
            with clocks.around("everything else"):
                side.step(session.batches)

        with side.engine.clocked(clocks.around):
            timed(session.layout, step, steps)
            session.tick()
        total = sum(clocks.seconds.values())
        found[name] = {part: clocks.seconds.get(part, 0.0) / total for part in PARTS}
        found[name]["seconds"] = total / steps
    return found
