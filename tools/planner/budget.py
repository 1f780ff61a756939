"""What a whole run takes: hours, GPU hours, money, and how often each weight is taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pretrain.config import RunConfig
from pretrain.numbers import duration, short_count
from pretrain.plan import blocks_of


def weights_of(config: RunConfig) -> tuple[int, int]:
    """Weights of the whole model, and how many of them are stored: the active ones, at first where density falls."""
    alone = replace(config, parallel=replace(config.parallel, tensor=1, pipeline=1, sequence=False))
    blocks = blocks_of(alone)
    return sum(block.elements(stored=False) for block in blocks), sum(block.elements() for block in blocks)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A run from its first step to its last, by prediction."""

    steps: int
    tokens: int
    weights: int
    active: int
    """Weights that are stored."""
    hours: float
    gpu_hours: float
    price: float | None
    """Of one GPU hour, in whatever money."""

    @classmethod
    def of(cls, config: RunConfig, gpus: int, seconds: float, price: float | None, dense: bool = False) -> Budget:
        """``seconds``: per step; ``dense``: as if every weight were stored."""
        total, active = weights_of(config)
        hours = seconds * config.train.steps / 3600
        return cls(
            steps=config.train.steps,
            tokens=config.train.steps * config.train.global_batch_size * config.data.seq_length,
            weights=total,
            active=total if dense else active,
            hours=hours,
            gpu_hours=hours * gpus,
            price=price,
        )

    @property
    def cost(self) -> float | None:
        """What the GPU hours cost, where a price is known."""
        return None if self.price is None else self.gpu_hours * self.price

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers."""
        return {
            **vars(self),
            "cost": self.cost,
            "tokens_per_weight": self.tokens / self.weights,
            "tokens_per_active_weight": self.tokens / self.active,
        }


def table(budgets: Sequence[Budget], names: Sequence[str]) -> list[str]:
    """Several budgets of one run side by side, as a Markdown table."""
    first = budgets[0]
    rows = [
        ("weights", [short_count(one.weights) for one in budgets]),
        ("active weights", [short_count(one.active) for one in budgets]),
        ("tokens per weight", [f"{one.tokens / one.weights:.3g}" for one in budgets]),
        ("tokens per active weight", [f"{one.tokens / one.active:.3g}" for one in budgets]),
        ("time", [duration(3600 * one.hours) for one in budgets]),
        ("hours", [amount(one.hours) for one in budgets]),
        ("GPU hours", [amount(one.gpu_hours) for one in budgets]),
    ]
    if first.price is not None:
        costs = [amount(one.cost) for one in budgets if one.cost is not None]
        rows.append((f"cost at {first.price:g} per GPU hour", costs))
    head = f"the whole run: {first.steps:,} steps, {short_count(first.tokens)} tokens"
    lines = [f"| {head} | {' | '.join(names)} |", "| --- |" + " ---: |" * len(budgets)]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]


def amount(number: float) -> str:
    """Hours or money, to three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
