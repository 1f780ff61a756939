"""Lion: the sign of a momentum, with half of AdamW's state (Chen et al. 2023, arXiv 2302.06675).

For a weight with gradient g and warm-up factor r:

    w <- w - lr * (r * sign(b1 m + (1 - b1) g) + weight_decay * w)          m <- b2 m + (1 - b2) g

A sign has no size to be corrected, so that bias correction changes nothing here; warm-up is what a regrown weight has.
The paper asks for a tenth to a third of AdamW's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smet.optim.formula import Formula, State, Values
from smet.optim.groups import betas_problem


class Lion(Formula):
    """See above."""

    name = "lion"
    state = (State("exp_avg"),)
    defaults = {"betas": (0.9, 0.99)}

    def problems(self, options: Mapping[str, Any]) -> list[str]:
        """See ``Formula``."""
        return betas_problem(options["betas"])

    def update(self, values: Values) -> None:
        """See ``Formula``."""
        beta1, beta2 = values.options["betas"]
        momentum, grad = values.state["exp_avg"], values.grad.to(values.weight.dtype)
        direction = momentum.lerp(grad, 1 - beta1).sign_()
        values.weight.mul_(1 - values.lr * values.options["weight_decay"])
        values.weight.sub_(direction.mul_(values.by_age(lambda _, warmup: values.lr * warmup)))
        momentum.lerp_(grad, 1 - beta2)
