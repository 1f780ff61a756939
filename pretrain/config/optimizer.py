"""The section ``optimizer`` of a run file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pretrain.config.once import note_once
from pretrain.rules import below, no_choice, outside_unit
from smet.optim import problem as formula_problem

ADAMW = ("adamw", "adamw_8bit")
"""Formulas whose options have keys of their own, which are ``OF_ADAMW``; those of others are keys of ``options``."""
OF_ADAMW = ("beta1", "beta2", "eps")


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule (``pretrain.schedule``)."""

    name: str = "adamw"
    """``adamw``, ``adamw_8bit`` (a byte per moment), ``lion``, or ``package.module:Class``, a formula of your own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the formula; those of ``adamw`` and ``adamw_8bit`` have keys of their own."""
    lr: float
    """Peak learning rate of dense parameters; sparse ones use lr * density**-sparsity.lr_exponent."""
    beta1: float = 0.9
    """``adamw`` and ``adamw_8bit``: decay of the first moment per optimizer step."""
    beta2: float = 0.999
    """``adamw`` and ``adamw_8bit``: decay of the second moment per optimizer step."""
    eps: float = 1e-8
    """``adamw`` and ``adamw_8bit``: added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate, per optimizer step."""
    gradient_clipping: float = 1.0
    """Largest global norm of the gradients; 0 = no clipping."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Decay after the warm-up: ``cosine``, ``linear``, ``wsd`` (warm-up, stable, decay) or ``constant``."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly to ``lr``."""
    min_lr_ratio: float = 0.1
    """Final rate as a fraction of ``lr``."""
    decay_fraction: float = 0.2
    """``wsd`` only: fraction of all steps, at the end, over which the rate decays linearly."""

    def problems(self) -> list[str]:
        """Every invalid value, one sentence each."""
        found = no_choice("optimizer", self) + below("optimizer", self, 0, ("warmup_steps",))
        found += outside_unit("optimizer", self, ("min_lr_ratio", "decay_fraction"))
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                found.append(f"optimizer.{name} is {getattr(self, name)}, expected a positive number")
        for name in ("weight_decay", "gradient_clipping"):
            if not getattr(self, name) >= 0:
                found.append(f"optimizer.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(f"optimizer.{name} is {getattr(self, name)}, expected a number in [0, 1)")
        return found + self._formula_problems()

    def _formula_problems(self) -> list[str]:
        """A name that is spelled wrong, and options that another formula would read. Imports nothing."""
        if wrong := formula_problem("optimizer.name", self.name):
            return [wrong]
        if self.name in ADAMW:
            hint = f"expected none with {self.name}, whose options are optimizer.{', optimizer.'.join(OF_ADAMW)}"
            return [f"optimizer.options is {self.options}, {hint}"] if self.options else []
        return [
            f"optimizer.{name} is {getattr(self, name)}, which only {' and '.join(ADAMW)} read; the options of"
            f" {self.name} are keys of optimizer.options"
            for name in OF_ADAMW
            if getattr(self, name) != getattr(OptimizerConfig, name)
        ]


def _alike(one: Any, other: Any) -> bool:
    """Whether the formulas of these names read the same options, and train at the same rate."""
    return bool(one == other) or (one in ADAMW and other in ADAMW)


def note_rate_of_other_formula(sections: Iterable[Any]) -> None:
    """Say so where the rate that a run takes was given for another formula than it trains with.

    Args:
        sections: what each layer of a run file says under ``optimizer``, the weakest first.
    """
    name: Any = OptimizerConfig.name
    rate: Any = None
    meant = name
    for section in sections:
        if not isinstance(section, dict):
            continue
        if "name" in section:
            name = section["name"] or OptimizerConfig.name
        if section.get("lr") is not None:
            rate, meant = section["lr"], name
    if rate is not None and not _alike(meant, name):
        note_once(
            f"optimizer.lr {rate} is that of {meant}, and optimizer.name is {name} now, whose rate may be quite"
            " another; set optimizer.lr beside it"
        )


def without_other_formula(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """The section ``lower`` of a run file without options of its formula, where ``upper`` names another one.

    Otherwise a file that gives AdamW its ``beta2`` could be run with no other formula. What is left out is said.
    """
    old, new = (layer.get("name") or OptimizerConfig.name for layer in (lower, upper))
    if "name" not in upper or _alike(old, new):
        return lower
    gone = (*OF_ADAMW, "options")
    own = {key: lower[key] for key in gone if lower.get(key) not in (None, {}, getattr(OptimizerConfig, key, None))}
    if own:
        given = ", ".join(f"optimizer.{key} {value}" for key, value in own.items())
        out = "is left out: an option" if len(own) == 1 else "are left out: options"
        note_once(f"{given} {out} of {old}, and optimizer.name is {new} now")
    return {key: value for key, value in lower.items() if key not in gone}
