"""Settings that were measured to be poor together: a line each at a run's start, with the page that says so."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.config import RunConfig
from pretrain.config.optimizer import ADAMW

LONG_MEMORY = 0.99
"""A second moment that remembers longer than a hundred steps."""


def poor(config: RunConfig) -> list[str]:
    """What to think over before hours are spent."""
    return [f"advice: {line}" for line in _poor(config)]


def _poor(config: RunConfig) -> Iterator[str]:
    sparsity, optimizer = config.sparsity, config.optimizer
    regrows = sparsity.dynamic and max(sparsity.prune_start, sparsity.prune_end) > 0
    adam = optimizer.name in ADAMW
    if adam and regrows and sparsity.bias_correction == "global" and optimizer.beta2 > LONG_MEMORY:
        yield (
            f"with sparsity.bias_correction global and optimizer.beta2 {optimizer.beta2:g} regrown weights take steps "
            "several times too large, and the loss stays higher for dozens of steps behind each update "
            "(docs/results-spikes.md); local correction takes that away"
        )
