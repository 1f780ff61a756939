"""Loss on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable

from pretrain.data.loader import BatchLoader
from pretrain.engine import Engine
from pretrain.layout import Layout


def never() -> bool:
    """Nobody asks to stop."""
    return False


def evaluate(
    engine: Engine, loader: BatchLoader, samples: int, layout: Layout, stopping: Callable[[], bool] = never
) -> dict[str, float]:
    """Mean loss over the first ``samples`` samples of ``loader`` and its perplexity. Collective.

    The same samples count whatever the number of ranks: filler rows cost nothing, and the mean over
    rows of a batch is undone before the mean over samples is taken. Where ``stopping`` (collective) says so,
    it ends without a result.

    Raises:
        DataError: a sample cannot be read on some rank; raised on every rank.
    """
    rows = loader.micro_batch_size * loader.dp_size
    batches, total = loader.eval_batches(samples), 0.0
    while (tokens := layout.agree(lambda: next(batches, None))) is not None:
        if stopping():
            return {}
        total += engine.loss(tokens) * rows
    loss = total / samples
    return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
