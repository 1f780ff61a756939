"""What all ranks measure together on the same engines: steps, traffic, memory, the optimizer, the profile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tools.bench.engines import DENSE_OPTIMIZERS, DenseSide, Side, SparseSide, random_batches
from tools.bench.options import Options
from tools.bench.ranks import Rank


class Session:
    """The engines of one process, built once and measured in turn.

    Attributes:
        sides: by name: ``SMET``, ``SMET dense residency`` and the dense ones, by their optimizer.
        batches: one micro-batch.
        tick: reports progress.
    """

    def __init__(self, rank: Rank):
        options, layout = rank.options, rank.layout
        self.options, self.layout, self.tick = options, layout, rank.tick
        self.batches = random_batches(options, layout)
        self.smet = SparseSide(options, layout)
        self.sides: dict[str, Side] = {name: DenseSide(options, layout, name) for name in dense_optimizers(options)}
        self.sides["SMET"] = self.smet
        self.sides["SMET dense residency"] = SparseSide(options, layout, weight_residency="dense")

    @contextmanager
    def extra(self, **sparsity: str) -> Iterator[SparseSide]:
        """One more SMET engine for a moment."""
        side = SparseSide(self.options, self.layout, **sparsity)
        yield side
        del side
        gc.collect()


def ticks(options: Options) -> int:
    """How often ``main`` reports progress."""
    return step_ticks(options) + _engines(options)


def step_ticks(options: Options) -> int:
    """How often ``steps_only`` reports progress."""
    from tools.bench import batches, steps

    own = _engines(options) * steps.rounds(options) + 2 * steps.few_rounds(options)
    return own + batches.ticks(options, _engines(options))


def _engines(options: Options) -> int:
    return 2 + len(dense_optimizers(options))


def dense_optimizers(options: Options) -> tuple[str, ...]:
    """Those that the dense side is measured with; DeepSpeed's is for CPUs, and a minute of compiling at first."""
    return DENSE_OPTIMIZERS[:1] if options.quick or options.device != "cpu" else DENSE_OPTIMIZERS


def main(rank: Rank) -> dict[str, Any]:
    """Everything that is measured on engines; plain data. Collective."""
    from tools.bench import breakdown, memory, optimizer, traffic

    session = Session(rank)
    return {
        **_steps(session),
        "sent": traffic.measure(session),
        "at_rest": memory.at_rest(session),
        "where": breakdown.measure(session),
        "optimizer": optimizer.measure(session),
    }


def steps_only(rank: Rank) -> dict[str, Any]:
    """Seconds per step of every engine, round by round. Collective."""
    return _steps(Session(rank))


def _steps(session: Session) -> dict[str, Any]:
    from tools.bench import batches, steps

    return {"seconds": steps.measure(session), "smaller": batches.measure(session)}
