"""AdamW whose bias correction and warm-up follow each weight's own age.

Source: Xiao et al., arXiv 2606.00888. For weight i with gradient g, age a (1 at its first update),
learning rate ``lr_d = lr * lr_factor`` and warm-up factor r:

    m <- b1 m + (1 - b1) g                  v <- b2 v + (1 - b2) g^2
    w <- w - lr_d * (r * (m / (1 - b1^a)) / (sqrt(v / (1 - b2^a)) + eps) + weight_decay * w)

With every weight at age t and r = 1 this is torch.optim.AdamW.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smet import kernels
from smet.kernels.step import AdamStep
from smet.optim.aged import AgedOptimizer
from smet.optim.ages import AgeTable, Averages, Betas, Remedies
from smet.optim.formula import Formula, State, Values
from smet.optim.groups import betas_problem, floor_problems


class AdamWFormula(Formula):
    """See above. Its kernels take vectors of any length."""

    name = "adamw"
    state = (State("exp_avg"), State("exp_avg_sq"))
    defaults = {"betas": (0.9, 0.999), "eps": 1e-8}
    in_chunks = False

    def problems(self, options: Mapping[str, Any]) -> list[str]:
        """See ``Formula``."""
        return floor_problems(options, ("eps",)) + betas_problem(options["betas"])

    def averages(self, options: Mapping[str, Any]) -> Averages:
        """See ``Formula``: the second moment stands under a root."""
        beta1, beta2 = options["betas"]
        return (beta1, 1.0), (beta2, 0.5)

    def update(self, values: Values) -> None:
        """See ``Formula``."""
        options, state = values.options, values.state
        beta1, beta2 = options["betas"]
        step_size, correction = tables(values.ages, values.step, values.lr, values.weight, (beta1, beta2))
        step = AdamStep(
            values.weight, values.grad, state["exp_avg"], state["exp_avg_sq"], values.birth, step_size, correction,
            beta1, beta2, options["eps"], values.lr * options["weight_decay"],
        )  # fmt: skip
        kernels.adamw(step)


def corrections(ages: AgeTable, code: int, step: int, betas: Betas) -> tuple[float, float]:
    """``(r / (1 - beta1**a), sqrt(1 - beta2**a))`` for the weights of ``code`` in step ``step`` (from 1)."""
    clock = ages.clock(code, step)
    return (0.0, 1.0) if clock is None else _corrections(*clock, betas)


def _corrections(age: float, warmup: float, betas: Betas) -> tuple[float, float]:
    return warmup / (1 - betas[0] ** age), math.sqrt(1 - betas[1] ** age)


def tables(ages: AgeTable, step: int, lr: float, like: Tensor, betas: Betas) -> tuple[Tensor, Tensor]:
    """Step sizes and corrections per code for optimizer step ``step``, in the dtype and on the device of ``like``."""
    table = torch.tensor(_table(tuple(ages.births), ages.remedies, step, betas))
    return (table[0] * lr).to(like), table[1].to(like)


@functools.lru_cache(maxsize=16)  # all parameters of a step share it, and a model may have thousands
def _table(births: tuple[float | None, ...], remedies: Remedies, step: int, betas: Betas) -> np.ndarray:
    """(2, codes), fp64: warm-up over the first correction, and the second correction.

    No tensor: what is made under ``FakeTensorMode`` or for the meta device has no numbers for those who come later.
    """
    clocks = AgeTable(remedies=remedies, births=list(births)).clocks(step)
    rows = [(0.0, 1.0) if clock is None else _corrections(*clock, betas) for clock in clocks]
    return np.array(rows, dtype=np.float64).T.copy()


class SmetAdamW(AgedOptimizer):
    """AdamW over dense tensors and over the active values of sparse layers; see ``AgedOptimizer``."""

    formula = AdamWFormula()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        remedies: Remedies | None = None,
        external_clock: bool = False,
    ):
        super().__init__(params, self.formula, lr, weight_decay, remedies, external_clock, betas=betas, eps=eps)
