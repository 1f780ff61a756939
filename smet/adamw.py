"""``AdamW``: the optimizer of a sparse model, whose groups and remedies follow from the model's own settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from smet.ages import Remedies
from smet.convert import parameter_groups
from smet.errors import ConfigError
from smet.optimizer import SmetAdamW
from smet.settings import settings_of, unwrapped


class AdamW(SmetAdamW):
    """``SmetAdamW`` over a model that ``sparsify`` made.

    Sparse layers train with ``lr`` times a factor of their density, and vectors (norms, biases) without weight decay.
    Where the topology changes, call ``attach`` before the first step. For DeepSpeed give it to
    ``deepspeed.initialize(optimizer=...)`` and attach to the engine.

    Args:
        model: the sparse model, also wrapped in DistributedDataParallel.

    Raises:
        ConfigError: ``model`` is no sparse model; see ``SmetAdamW`` for the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"AdamW was given a {type(model).__name__}, expected the model: its groups follow from that; for groups"
                " of your own use SmetAdamW"
            )
        self.model = unwrapped(model)
        config = settings_of(self.model)
        groups = parameter_groups(self.model, config, weight_decay)
        super().__init__(groups, lr, betas, eps, weight_decay, Remedies.of(config))

    def _takes_steps(self) -> bool:
        if self.driver is not None:
            return super()._takes_steps()
        if self.holds_parameters():
            if settings_of(self.model).dynamic:
                raise ConfigError(
                    "the model's topology is to change, and nobody does it; call smet.attach(optimizer, total_steps)"
                    " before the first step, or make it sparse with update_interval=0"
                )
            return True
        # An engine has put its partitions in the place of the parameters, and tries a step with gradients of zero.
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        if any(grad is not None and bool(grad.any()) for grad in grads):
            raise ConfigError(
                "an engine runs this optimizer; call smet.attach(engine, total_steps) before its first step"
            )
        return False

    def holds_parameters(self) -> bool:
        """Whether it steps the model's own parameters, and not an engine's partitions of them."""
        given = [param for group in self.param_groups for param in group["params"]]
        own = set(map(id, self.model.parameters()))
        return bool(given) and all(id(param) in own for param in given)

    def __getstate__(self) -> dict[str, Any]:
        """See ``SmetAdamW``; a copy keeps the model, and has to be attached itself."""
        return {**super().__getstate__(), "model": self.model}
