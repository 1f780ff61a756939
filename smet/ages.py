"""Ages of regrown weights in one byte each.

A weight's state holds a *birth code*. ``AgeTable`` maps codes to the optimizer step after which
their weights were regrown; code 0 is "active since the start", or so old that neither bias
correction nor warm-up still differs from that. Ages of all weights of one code are equal, so the
step sizes of a whole layer come from tables of at most 256 entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CODES = 256

Betas = tuple[float, float]


@dataclass(frozen=True)
class Remedies:
    """What Adam needs to know of the method (see ``SmetConfig`` for the meanings)."""

    bias_correction: str = "local"
    warmup_steps: int = 100
    warmup_scope: str = "regrown"

    def warmup(self, age: int, regrown: bool) -> float:
        """r of algorithm.md: the fraction of its full step that a weight takes at ``age``."""
        if self.warmup_steps == 0 or not (regrown or self.warmup_scope == "all"):
            return 1.0
        return min(1.0, age / self.warmup_steps)


@dataclass
class AgeTable:
    """Birth code to birth step. ``births[c]`` is None where code c is free; ``births[0]`` is 0.

    ``beta1`` and ``beta2`` are the slowest of any parameter group: they decide when a code has matured.
    """

    beta1: float
    beta2: float
    remedies: Remedies = field(default_factory=Remedies)
    births: list[int | None] = field(default_factory=lambda: [0] + [None] * (CODES - 1))

    def corrections(self, code: int, step: int, betas: Betas | None = None) -> tuple[float, float]:
        """``(r / (1 - beta1**a), sqrt(1 - beta2**a))`` for the weights of ``code`` in step ``step`` (from 1)."""
        warm, first, second = self._factors(code, step, betas or (self.beta1, self.beta2))
        return warm / first, math.sqrt(second)

    def _factors(self, code: int, step: int, betas: Betas) -> tuple[float, float, float]:
        """(r, 1 - beta1**a, 1 - beta2**a)."""
        age = step - (self.births[code] or 0)
        clock = age if self.remedies.bias_correction == "local" else step
        return self.remedies.warmup(age, regrown=code != 0), 1 - betas[0] ** clock, 1 - betas[1] ** clock

    def tables(self, step: int, lr: float, like: Tensor, betas: Betas | None = None) -> tuple[Tensor, Tensor]:
        """Step sizes and corrections per code for optimizer step ``step``, on the device of ``like``.

        Args:
            betas: those of the parameter group, where it has its own.
        """
        rows = [
            self.corrections(code, step, betas) if birth is not None and birth < step else (0.0, 1.0)
            for code, birth in enumerate(self.births)
        ]
        table = torch.tensor(rows, dtype=torch.float64)
        sizes = (table[:, 0] * lr).to(like)
        return sizes, table[:, 1].to(like)

    def open(self, step: int) -> tuple[int, dict[int, int]]:
        """Give a code to the weights regrown after ``step``.

        Returns:
            The code, and the codes whose weights must be recoded first (old code -> new code):
            those that matured (-> 0), and, if all codes are taken, the neighbouring pair whose
            corrections differ least (step sizes stay within 2 % of exact ones for Adam's usual betas, at any interval).
        """
        recode = {code: 0 for code in range(1, CODES) if self.births[code] is not None and self._mature(code, step)}
        if None not in self.births[1:] and not recode:
            recode = dict([self._closest_pair(step)])
        for code in recode:
            self.births[code] = None
        fresh = self.births.index(None)
        self.births[fresh] = step
        return fresh, recode

    def _mature(self, code: int, step: int) -> bool:
        age = step - (self.births[code] or 0)
        negligible = 2.0**-25
        return max(self.beta1, self.beta2) ** age < negligible and age >= self.remedies.warmup_steps

    def _closest_pair(self, step: int) -> tuple[int, int]:
        """(code to give up, code that takes its weights): the neighbours in age whose factors differ least.

        The factors are compared one by one. Their product is smallest near age 12, so that two ages on
        either side of it agree for one step and differ by percents soon after; each factor's own
        difference only shrinks as the weights grow older.
        """
        ordered = sorted((birth, code) for code, birth in enumerate(self.births) if code and birth is not None)
        logs = {
            code: [math.log(factor) for factor in self._factors(code, step + 1, (self.beta1, self.beta2))]
            for _, code in ordered
        }

        def difference(old: int, young: int) -> float:
            return sum(abs(a - b) for a, b in zip(logs[old], logs[young], strict=True))

        pairs = zip(ordered, ordered[1:], strict=False)
        _, old, young = min((difference(old, young), old, young) for (_, old), (_, young) in pairs)
        return young, old

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"births": list(self.births)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.births = list(state["births"])
