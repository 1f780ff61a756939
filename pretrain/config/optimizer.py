"""The section ``optimizer`` of a run file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pretrain.rules import below, no_choice, outside_unit
from smet.optim import problem as formula_problem


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule (``pretrain.schedule``)."""

    name: str = "adamw"
    """``adamw``, ``lion``, or ``package.module:Class``, a formula of your own (``smet.optim.formula``)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the formula; those of ``adamw`` have keys of their own."""
    lr: float
    """Peak learning rate of dense parameters; sparse ones use lr * density**-sparsity.lr_exponent."""
    beta1: float = 0.9
    """``adamw`` only: decay of the first moment per optimizer step."""
    beta2: float = 0.999
    """``adamw`` only: decay of the second moment per optimizer step."""
    eps: float = 1e-8
    """``adamw`` only: added to the root of the second moment."""
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
        of_adamw = {name: getattr(OptimizerConfig, name) for name in ("beta1", "beta2", "eps")}
        if self.name == "adamw":
            hint = f"expected none with adamw, whose options are optimizer.{', optimizer.'.join(of_adamw)}"
            return [f"optimizer.options is {self.options}, {hint}"] if self.options else []
        return [
            f"optimizer.{name} is {getattr(self, name)}, which only adamw reads; the options of {self.name} are keys of"
            " optimizer.options"
            for name, default in of_adamw.items()
            if getattr(self, name) != default
        ]
