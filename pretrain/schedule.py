"""The learning rate as a pure function of the step: a linear warm-up, then one of four decays.

``wsd`` (warm-up, stable, decay): Hu et al., arXiv 2404.06395.
"""

from __future__ import annotations

import math

from pretrain.config.optimizer import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0, of ``total_steps``.

    Step n of W warm-up steps has (n + 1) / W of the peak: no step is wasted on a rate of 0. The decay starts
    from the peak at step W and would reach ``min_lr_ratio`` of it at step ``total_steps``.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    decaying = total_steps - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / decaying) if decaying > 0 else 1.0
    if config.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        share = 1.0 - progress
    elif config.schedule == "wsd":
        tail = min(config.decay_fraction * total_steps, decaying)
        share = min(1.0, (1.0 - progress) * decaying / tail) if tail > 0 else 1.0
    else:  # constant
        share = 1.0
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share)
