"""Where a step's time goes: clocks around its parts, each counting only what no clock inside it counts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from smet import bank, kernels
from tools.bench.clock import timed
from tools.bench.engines import Side
from tools.bench.figures import PARTS
from tools.bench.session import Session


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

    def wrap(self, function: Callable[..., Any], part: str | Callable[[], str]) -> Callable[..., Any]:
        """``function`` with a clock around it."""

        def clocked(*arguments: Any, **options: Any) -> Any:
            with self.around(part if isinstance(part, str) else part()):
                return function(*arguments, **options)

        return clocked


@contextmanager
def clocks_on(side: Side) -> Iterator[Clocks]:
    """Clocks around the parts of ``side.step``."""
    clocks = Clocks()
    engine, zero = side.engine.deepspeed, side.store.zero
    state = {"collectives": "gradient reduction"}

    def optimized(step: Callable[..., Any]) -> Callable[..., Any]:
        inner = clocks.wrap(step, "optimizer")

        def then_gathers(*arguments: Any, **options: Any) -> Any:
            result = inner(*arguments, **options)
            state["collectives"] = "weight gathers"
            return result

        return then_gathers

    def begun(forward: Callable[..., Any]) -> Callable[..., Any]:
        inner = clocks.wrap(forward, "forward")

        def then_reduces(*arguments: Any, **options: Any) -> Any:
            state["collectives"] = "weight gathers"  # ZeRO-3's
            result = inner(*arguments, **options)
            state["collectives"] = "gradient reduction"
            return result

        return then_reduces

    waiting = torch._C._distributed_c10d.Work
    with ExitStack() as stack:
        for owner, name, wrapped in (
            (kernels, "expand", clocks.wrap(kernels.expand, "expand")),
            (kernels, "compress", clocks.wrap(kernels.compress, "compress")),
            (bank.MaskBank, "bits", clocks.wrap(bank.MaskBank.bits, "mask gathers")),
            (engine, "forward", begun(engine.forward)),
            (engine, "backward", clocks.wrap(engine.backward, "backward")),
            (zero.optimizer, "step", optimized(zero.optimizer.step)),
        ):
            stack.enter_context(patch.object(owner, name, wrapped))
        original = waiting.wait

        def wait(work: Any, *arguments: Any) -> Any:
            with clocks.around(state["collectives"]):
                return original(work, *arguments)

        setattr(waiting, "wait", wait)  # noqa: B010 (its signature is another)
        stack.callback(setattr, waiting, "wait", original)
        yield clocks


def measure(session: Session) -> dict[str, dict[str, float]]:
    """Share of each part in the step of every engine, on rank 0. Collective."""
    steps = 1 if session.options.quick else 4
    found = {}
    for name, side in session.sides.items():
        with clocks_on(side) as clocks:
            step = clocks.wrap(lambda side=side: side.step(session.batches), "everything else")
            timed(session.layout, step, steps)
            session.tick()
        total = sum(clocks.seconds.values())
        found[name] = {part: clocks.seconds.get(part, 0.0) / total for part in PARTS}
        found[name]["seconds"] = total / steps
    return found
