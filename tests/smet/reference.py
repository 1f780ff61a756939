"""An independent AdamW with ages, over dense positions, in a few lines of numpy.

It knows no codes, no tables, no compressed order and no blocks: every entry of a matrix has its own
weight, moments and age, and a flag that says whether it was regrown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class DenseReference:
    """algorithm.md, remedies 1 to 5, for one matrix ``weight`` whose entries under ``active`` train."""

    weight: Array
    active: NDArray[np.bool_]
    local: bool = True
    warmup: int = 0
    warm_all: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    steps: int = 0
    m: Array = field(init=False)
    v: Array = field(init=False)
    age: NDArray[np.int64] = field(init=False)
    regrown: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.weight = np.where(self.active, self.weight, 0.0)
        self.m, self.v = np.zeros_like(self.weight), np.zeros_like(self.weight)
        self.age = np.zeros(self.weight.shape, dtype=np.int64)
        self.regrown = np.zeros(self.weight.shape, dtype=bool)

    def step(self, gradient: Array, lr: float, decay: float = 0.0) -> None:
        """One update with the density-scaled learning rate ``lr`` and the dense ``gradient``."""
        self.steps += 1
        self.age += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * gradient
        self.v = self.beta2 * self.v + (1 - self.beta2) * gradient**2
        clock = self.age if self.local else self.steps
        r = np.ones_like(self.weight)
        if self.warmup:
            warming = np.full_like(self.regrown, True) if self.warm_all else self.regrown
            r = np.where(warming, np.minimum(1.0, self.age / self.warmup), 1.0)
        mhat = self.m / (1 - self.beta1**clock)
        vhat = self.v / (1 - self.beta2**clock)
        change = lr * (r * mhat / (np.sqrt(vhat) + self.eps) + decay * self.weight)
        self.weight = np.where(self.active, self.weight - change, 0.0)

    def change_topology(self, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Take over a new mask; returns the entries that were grown."""
        grown = active & ~self.active
        for tensor in (self.weight, self.m, self.v):
            tensor[grown | ~active] = 0.0
        self.age[grown] = 0
        self.regrown[grown] = True
        self.active = active
        return grown
