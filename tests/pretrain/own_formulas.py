"""Formulas that a user may write, outside the packages; run files name them as ``tests.pretrain.own_formulas:...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from smet.optim.formula import Formula, State, Values


class Halved(Formula):
    """RMSProp with momentum, whose second moment is bf16 and whose momentum is corrected by each weight's own age."""

    name = "halved"
    state = (State("velocity"), State("square", torch.bfloat16))
    defaults = {"momentum": 0.9, "decay": 0.95}

    def averages(self, options: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        return (options["momentum"], 1.0), (options["decay"], 0.5)

    def update(self, values: Values) -> None:
        momentum, decay = values.options["momentum"], values.options["decay"]
        grad = values.grad.to(values.weight.dtype)
        velocity, square = values.state["velocity"], values.state["square"]
        velocity.lerp_(grad, 1 - momentum)
        square.copy_(decay * square.float() + (1 - decay) * grad.square())
        size = values.by_age(lambda age, warmup: values.lr * warmup * (1 - decay**age) ** 0.5 / (1 - momentum**age))
        values.weight.sub_(size * velocity / (square.float().sqrt() + 1e-8))


class Sign(Formula):
    """Descent by the gradient's sign: it keeps nothing at all."""

    name = "sign"

    def update(self, values: Values) -> None:
        values.weight.sub_(values.lr * values.grad.sign().to(values.weight.dtype))


class Orthogonal(Formula):
    """Like Muon it needs whole matrices: the gradient's nearest orthogonal matrix."""

    name = "orthogonal"
    requires = ("matrices",)

    def update(self, values: Values) -> None:
        u, _, v = torch.linalg.svd(values.grad.view(values.shape), full_matrices=False)
        values.weight.sub_(values.lr * (u @ v).reshape(-1))


class Nameless(Formula):
    """Declares what cannot be."""

    state = (State("birth"),)


class Eighths(Sign):
    """Declares a state that no checkpoint could give back."""

    state = (State("eighth", torch.float8_e4m3fn),)


NO_FORMULA = 3
