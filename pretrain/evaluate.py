"""Loss on held-out samples."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from pretrain.data.loader import BatchLoader
from pretrain.layout import Layout


@torch.no_grad()
def evaluate(engine: Any, loader: BatchLoader, samples: int, layout: Layout) -> dict[str, float]:
    """Mean loss over the first ``samples`` samples of ``loader`` and its perplexity. Collective.

    The same samples count whatever the number of ranks.
    """
    totals = torch.zeros(2, device=layout.device, dtype=torch.float64)
    engine.eval()
    try:
        for tokens, weight in loader.eval_batches(samples):
            loss = engine(tokens.to(layout.device))
            totals += torch.tensor([float(loss) * weight, weight], dtype=torch.float64, device=layout.device)
    finally:
        engine.train()
    if layout.group is not None:
        dist.all_reduce(totals, group=layout.group)
    loss = float(totals[0] / totals[1])
    return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
