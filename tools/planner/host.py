"""Seconds that Python needs to hand a step's work to its GPU: where they are more than the GPU's own, it waits."""

from __future__ import annotations

from pretrain.config import RunConfig
from pretrain.models import inventory_of

STEP = 0.025
LAYER = 0.005
SPARSE_LAYER = 0.0015
ZERO_3 = 0.012
"""Per step; per decoder layer and micro-batch, forward and backward; more of a sparse one, and under ZeRO-3. From steps
on one H200 whose GPU waited (docs/performance-gpu.md: 24 and 6 layers, ZeRO-2 and 3); other hosts differ."""


def host_seconds(config: RunConfig, gpus: int, dense: bool = False) -> float:
    """Of one step on one rank, with the layers of its pipeline stage; at least, since checkpointing comes on top."""
    parallel = config.parallel
    data = gpus // (parallel.tensor * parallel.pipeline)
    layers = -(-inventory_of(config.model).shape.layers // parallel.pipeline)
    dense = dense or config.sparsity.density == 1.0
    each = LAYER + (0.0 if dense else SPARSE_LAYER) + (ZERO_3 if parallel.zero_stage == 3 else 0.0)
    return STEP + config.accumulation(data) * layers * each


def waiting(config: RunConfig, gpus: int, seconds: float) -> str:
    """A sentence for a step whose GPU would wait; empty where it would not. ``seconds``: what it has to do itself."""
    host = host_seconds(config, gpus)
    if host <= seconds or config.train.device == "cpu":
        return ""
    return (
        f"Python on the one host that was measured needs about {host:.2g} s for such a step, more than the GPU's "
        f"{seconds:.2g} s: larger micro-batches or fewer layers per rank help (docs/performance-gpu.md)."
    )
