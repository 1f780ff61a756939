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
    """Birth code to birth step. ``births[c]`` is None where code c is free; ``births[0]`` is 0."""

    beta1: float
    beta2: float
    remedies: Remedies = field(default_factory=Remedies)
    births: list[int | None] = field(default_factory=lambda: [0] + [None] * (CODES - 1))

    def corrections(self, code: int, step: int) -> tuple[float, float]:
        """``(r / (1 - beta1**a), sqrt(1 - beta2**a))`` for the weights of ``code`` in step ``step`` (from 1)."""
        birth = self.births[code] or 0
        age = step - birth
        clock = age if self.remedies.bias_correction == "local" else step
        warm = self.remedies.warmup(age, regrown=code != 0)
        return warm / (1 - self.beta1**clock), math.sqrt(1 - self.beta2**clock)

    def tables(self, step: int, lr: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes and corrections per code for optimizer step ``step``, on the device of ``like``."""
        rows = [
            self.corrections(code, step) if birth is not None and birth < step else (0.0, 1.0)
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
            corrections differ least (an error far below Adam's own noise, see docs).
        """
        recode = {
            code: 0 for code in range(1, CODES) if self.births[code] is not None and self._mature(code, step)
        }
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
        """(code to give up, code that takes its weights)."""
        ordered = sorted((birth, code) for code, birth in enumerate(self.births) if code and birth is not None)
        def size(code: int) -> float:
            scale, correction = self.corrections(code, step + 1)
            return scale * correction
        pairs = zip(ordered, ordered[1:], strict=False)
        _, old, young = min((abs(size(a) - size(b)) / size(a), a, b) for (_, a), (_, b) in pairs)
        return young, old

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"births": list(self.births)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.births = list(state["births"])
