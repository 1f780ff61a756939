"""How far Adam can move a regrown weight: bounds that hold for every sequence of gradients (docs/theory.md).

They bound the size of updates. They say nothing about convergence.
"""

from __future__ import annotations

import math

from smet.optim.ages import Betas, Remedies


def momentum_ratio_bound(age: int, betas: Betas) -> float:
    """Largest |m| / sqrt(v) after ``age`` gradients, moments starting at 0; attained (docs/theory.md, eq. 2).

    Args:
        age: number of gradients seen, 1 or more.
        betas: decay rates of the first and second moment; beta1**2 < beta2, as Reddi et al. 2018 and Kingma & Ba
            assume, keeps it finite as the age grows.
    """
    beta1, beta2 = betas
    ratio = beta1**2 / beta2
    powers = age if ratio == 1 else (1 - ratio**age) / (1 - ratio)
    return (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(powers)


def update_bound(age: int, betas: Betas, clock: int | None = None, remedies: Remedies | None = None) -> float:
    """Largest update of a weight of ``age``, in units of its learning rate, without weight decay (eq. 3).

    Args:
        age: optimizer steps since the weight was (re)grown, 1 at its first update.
        betas: as ``momentum_ratio_bound``.
        clock: the run's step, by which naive Adam corrects; needed with global bias correction only.
        remedies: the method; default is SMET's local correction without warm-up.
    """
    remedies = remedies or Remedies(warmup_steps=0)
    steps = age if remedies.bias_correction == "local" else clock
    if steps is None:
        raise ValueError("global bias correction needs the clock, the run's step")
    beta1, beta2 = betas
    correction = math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
    return remedies.warmup(age, regrown=True) * correction * momentum_ratio_bound(age, betas)


def displacement_bound(steps: int, betas: Betas, clock: int | None = None, remedies: Remedies | None = None) -> float:
    """Farthest a regrown weight can be from 0 after its first ``steps`` updates, in units of its learning rate (eq. 4).

    Args:
        steps: number of updates.
        betas, remedies: as ``update_bound``.
        clock: the run's step at the weight's first update.
    """
    return sum(
        update_bound(age, betas, None if clock is None else clock + age - 1, remedies) for age in range(1, steps + 1)
    )
