"""The optimizer of a sparse model, whose groups and remedies follow from the model's own settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from smet.dtensors import is_cut, let_go
from smet.errors import ConfigError
from smet.groups import parameter_groups
from smet.optim import find
from smet.optim.adamw import SmetAdamW
from smet.optim.aged import AgedOptimizer
from smet.optim.ages import Remedies
from smet.optim.formula import Formula
from smet.settings import settings_of, unwrapped


class ModelOptimizer(AgedOptimizer):
    """``AgedOptimizer`` over a model that ``sparsify`` made.

    Sparse layers train with ``lr`` times a factor of their density, and vectors (norms, biases) without weight decay.
    Where the topology changes, call ``attach`` before the first step. Under ``fully_shard`` make it after that. For
    DeepSpeed give it to ``deepspeed.initialize(optimizer=...)`` and attach to the engine.

    ``attach_late`` is for trainers that call ``fully_shard`` and load a state with no event between: torch tries a step
    with learning rate 0 to have state made that it then loads into, and that step attaches, and does nothing else.

    Args:
        model: the sparse model, also wrapped in DistributedDataParallel.
        formula: ``lion``, ``package.module:Class``, or a class derived from ``smet.optim.formula.Formula``.
        options: the formula's.

    Raises:
        ConfigError: ``model`` is no sparse model, or there is no such formula; see ``AgedOptimizer`` for the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        formula: str | Formula | type[Formula],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        **options: Any,
    ):
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{type(self).__name__} was given a {type(model).__name__}, expected the model: its groups follow from"
                " that; for groups of your own use SmetAdamW or AgedOptimizer"
            )
        self.model = unwrapped(model)
        config = settings_of(self.model)
        groups = parameter_groups(self.model, config, weight_decay)
        found = find("formula", formula) if isinstance(formula, str) else formula
        AgedOptimizer.__init__(self, groups, found, lr, weight_decay, Remedies.of(config), **options)

    def _takes_steps(self) -> bool:
        if self.driver is not None:
            return super()._takes_steps()
        if self.holds_parameters():
            if self.attach_late is not None and not any(group["lr"] for group in self.param_groups):
                self.attach_late()
                return False
            if settings_of(self.model).dynamic:
                raise ConfigError(
                    "the model's topology is to change, and nobody does it; call smet.attach(optimizer, total_steps)"
                    " before the first step, or make it sparse with update_interval=0"
                )
            return super()._takes_steps()
        if any(is_cut(param) for param in self.model.parameters()):
            raise ConfigError(
                "the optimizer was made before fully_shard, and holds parameters of before; make it after"
            )
        # An engine has put its partitions in the place of the parameters, and tries a step with gradients of zero.
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        if any(grad is not None and bool(grad.any()) for grad in grads):
            raise ConfigError(
                "an engine runs this optimizer; call smet.attach(engine, total_steps) before its first step"
            )
        return False

    def holds_parameters(self) -> bool:
        """Whether it steps the model's own parameters, and not an engine's partitions of them."""
        let_go(self.model)
        given = [param for group in self.param_groups for param in group["params"]]
        own = set(map(id, self.model.parameters()))
        return bool(given) and all(id(param) in own for param in given)

    def __getstate__(self) -> dict[str, Any]:
        """See ``AgedOptimizer``; a copy keeps the model, and has to be attached itself."""
        return {**super().__getstate__(), "model": self.model}


class AdamW(ModelOptimizer, SmetAdamW):
    """``SmetAdamW`` over a model that ``sparsify`` made; see ``ModelOptimizer``."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(model, self.formula, lr, weight_decay, betas=betas, eps=eps)
