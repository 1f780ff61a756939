"""Loss on held-out samples."""

from __future__ import annotations

import math

from pretrain.data.loader import BatchLoader
from pretrain.engine import Engine


def evaluate(engine: Engine, loader: BatchLoader, samples: int) -> dict[str, float]:
    """Mean loss over the first ``samples`` samples of ``loader`` and its perplexity. Collective.

    The same samples count whatever the number of ranks: filler rows cost nothing, and the mean over
    rows of a batch is undone before the mean over samples is taken.
    """
    rows = loader.micro_batch_size * loader.dp_size
    total = sum(engine.loss(tokens) * rows for tokens in loader.eval_batches(samples))
    loss = total / samples
    return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
