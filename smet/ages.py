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

from smet.config import CHOICES, SmetConfig
from smet.errors import ConfigError, nearest
from smet.fields import wrong_types

CODES = 256

Betas = tuple[float, float]


@dataclass(frozen=True)
class Remedies:
    """What Adam needs to know of the method (see ``SmetConfig`` for the meanings)."""

    bias_correction: str = "local"
    warmup_steps: int = 100
    warmup_scope: str = "regrown"

    def __post_init__(self) -> None:
        found = [f"{name} is {text}" for name, text in wrong_types(self).items()]
        if not found:
            for name in ("bias_correction", "warmup_scope"):
                value, allowed = getattr(self, name), CHOICES[name]
                if value not in allowed:
                    found.append(f"{name} is '{value}', expected one of {', '.join(allowed)}{nearest(value, allowed)}")
            if self.warmup_steps < 0:
                found.append(f"warmup_steps is {self.warmup_steps}, expected 0 or more")
        if found:
            raise ConfigError(found)

    @classmethod
    def of(cls, config: SmetConfig) -> Remedies:
        """Those that ``config`` asks for."""
        return cls(config.bias_correction, config.warmup_steps, config.warmup_scope)

    def warmup(self, age: float, regrown: bool) -> float:
        """r of algorithm.md: the fraction of its full step that a weight takes at ``age``."""
        if self.warmup_steps == 0 or not (regrown or self.warmup_scope == "all"):
            return 1.0
        return min(1.0, age / self.warmup_steps)


@dataclass
class AgeTable:
    """Birth code to birth step. ``births[c]`` is None where code c is free; ``births[0]`` is 0.

    There are more births than codes where updates are frequent. Neighbours then share a code, whose birth is the
    middle of theirs. What a weight's update is off by stays below 1.5 % with a warm-up of up to 300 steps, 2.5 % up
    to 1,000 and 4 % beyond: measured over intervals, warm-ups and betas up to (0.99, 0.9999). The largest errors are
    those of an update at every step; at long intervals there are none.

    ``beta1`` and ``beta2`` are the slowest of any parameter group: they decide when a code has matured.
    """

    beta1: float
    beta2: float
    remedies: Remedies = field(default_factory=Remedies)
    births: list[float | None] = field(default_factory=lambda: [0] + [None] * (CODES - 1))
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First and last birth of the weights of each code that two or more births share."""

    def corrections(self, code: int, step: int, betas: Betas | None = None) -> tuple[float, float]:
        """``(r / (1 - beta1**a), sqrt(1 - beta2**a))`` for the weights of ``code`` in step ``step`` (from 1)."""
        warm, first, second = self._factors(code, step, betas or (self.beta1, self.beta2))
        return warm / first, math.sqrt(second)

    def _factors(self, code: int, step: int, betas: Betas) -> tuple[float, float, float]:
        """(r, 1 - beta1**a, 1 - beta2**a)."""
        return self._factors_at(step - (self.births[code] or 0), step, betas, regrown=code != 0)

    def _factors_at(self, age: float, step: int, betas: Betas, regrown: bool = True) -> tuple[float, float, float]:
        clock = age if self.remedies.bias_correction == "local" else step
        return self.remedies.warmup(age, regrown), 1 - betas[0] ** clock, 1 - betas[1] ** clock

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
            those that matured (-> 0), and, if all codes are taken, one of the neighbouring pair whose
            corrections differ least.
        """
        recode = {code: 0 for code in range(1, CODES) if self.births[code] is not None and self._mature(code, step)}
        if None not in self.births[1:] and not recode:
            young, old = self._closest_pair(step)
            recode = {young: old}
            first, last = self._span(old)[0], self._span(young)[1]
            self.births[old], self.spans[old] = (first + last) / 2, (first, last)
        for code in recode:
            self.births[code] = None
            self.spans.pop(code, None)
        fresh = self.births.index(None)
        self.births[fresh] = step
        return fresh, recode

    def _mature(self, code: int, step: int) -> bool:
        age = step - self._span(code)[1]
        negligible = 2.0**-25
        return max(self.beta1, self.beta2) ** age < negligible and age >= self.remedies.warmup_steps

    def _closest_pair(self, step: int) -> tuple[int, int]:
        """(code to give up, code that takes its weights): the neighbours in age whose weights' factors differ least.

        The difference is that from the oldest of the one to the youngest of the other, factor by factor. Their
        product is smallest near age 12, so that two ages on either side of it agree for one step and differ by
        percents soon after; each factor's own difference only shrinks as the weights grow older.
        """
        ordered = sorted((birth, code) for code, birth in enumerate(self.births) if code and birth is not None)
        betas = (self.beta1, self.beta2)
        logs = {
            code: [
                [math.log(f) for f in self._factors_at(step + 1 - birth, step + 1, betas)] for birth in self._span(code)
            ]
            for _, code in ordered
        }

        def difference(old: int, young: int) -> float:
            r, first, second = (abs(a - b) for a, b in zip(logs[old][0], logs[young][1], strict=True))
            return r + first + second / 2  # the second moment stands under a root

        pairs = zip(ordered, ordered[1:], strict=False)
        _, old, young = min((difference(old, young), old, young) for (_, old), (_, young) in pairs)
        return young, old

    def _span(self, code: int) -> tuple[int, int]:
        birth = int(self.births[code] or 0)
        return self.spans.get(code, (birth, birth))

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"births": list(self.births), "spans": [[code, *span] for code, span in sorted(self.spans.items())]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; those of the first release know no spans."""
        self.births = list(state["births"])
        self.spans = {int(code): (first, last) for code, first, last in state.get("spans", [])}
