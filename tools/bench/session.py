"""The engines that are measured in turn, in every rank."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from .engines import DENSE_OPTIMIZERS, DenseSide, Side, SparseSide, random_batches
from .options import Options
from .ranks import Rank


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


def dense_optimizers(options: Options) -> tuple[str, ...]:
    """Those that the dense side is measured with; DeepSpeed's is for CPUs, and a minute of compiling at first."""
    return DENSE_OPTIMIZERS[:1] if options.quick or options.device != "cpu" else DENSE_OPTIMIZERS
