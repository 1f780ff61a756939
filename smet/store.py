"""Where a parameter's master weights and optimizer state live: this rank's fragment of each.

``LocalStore`` is for plain torch, where a fragment is the whole parameter. ``smet.zero`` has the
same interface for DeepSpeed's partitions, ``smet.fsdp`` for what ``fully_shard`` cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from smet.agreement import default_replicas, usable
from smet.dtensors import own
from smet.errors import ConfigError
from smet.kernels.checks import plain
from smet.optim.aged import AgedOptimizer


@dataclass
class Fragment:
    """This rank's contiguous piece of one parameter, as live 1-D views.

    ``state`` has what the optimizer's formula declares and, for parameters that can be regrown, ``birth``.
    """

    start: int
    total: int
    master: Tensor
    state: dict[str, Tensor]

    @property
    def range(self) -> tuple[int, int]:
        """(start, length) in elements."""
        return self.start, self.master.numel()


class ParameterStore(Protocol):
    """What the topology controller and checkpoints need to know of an engine."""

    optimizer: AgedOptimizer
    group: dist.ProcessGroup | None
    """Ranks over which fragments of a parameter are spread; None = this rank has all of it."""
    replicas: dist.ProcessGroup | None
    """Ranks that hold the same layers and average their gradients, so that they decide alike; None = this one alone."""
    skips_frozen: bool
    """Whether a parameter that is frozen between two steps is left alone from then on."""
    mesh: Any
    """The ``DeviceMesh`` of ``group`` where torch itself cuts tensors over it; else None."""

    def settle(self) -> None:
        """Let modules hold the parameters that the optimizer holds, wherever the loop stands."""

    def fragment(self, param: nn.Parameter) -> Fragment:
        """This rank's fragment of ``param``; empty where it owns nothing."""

    def publish(self) -> None:
        """Copy all master weights into the parameters that compute. Collective."""

    def step_applied(self) -> bool:
        """Whether the engine's last step changed weights (False after an overflow)."""

    def ticks(self) -> int:
        """A number that changes whenever gradients were used up: with a step, and with one that the engine left out."""

    def has_gradients(self) -> bool:
        """Whether gradients of a step in progress are there: they are not before its first micro-batch.

        The same on all ranks of ``group``, and collective over it.
        """

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, optimizer group name, tensor) of everything held on this rank now.

        Kinds: ``weights``, ``gradients``, ``master``, ``moments``, ``ages``.
        """


class LocalStore:
    """The whole of every parameter on this rank, updated by its ``AgedOptimizer`` itself.

    Args:
        optimizer: over ``parameter_groups(model, config)``.
        replicas: ranks that train the same model together and average its gradients, as DistributedDataParallel
            does; all ranks of torch.distributed where nothing is said and it is initialised. None = this rank trains
            a model of its own. Where each rank holds another shard of the model, the ranks that hold this one's.

    Raises:
        ConfigError: another optimizer, or a group that this rank is not in.
    """

    skips_frozen = True
    mesh: Any = None

    def __init__(self, optimizer: AgedOptimizer, replicas: dist.ProcessGroup | Literal["all"] | None = "all"):
        if not isinstance(optimizer, AgedOptimizer):
            inside = getattr(optimizer, "optimizer", None)
            expected = "smet.SmetAdamW over smet.parameter_groups(model, config)"
            if isinstance(inside, AgedOptimizer):
                expected = f"the {type(inside).__name__} inside it: LocalStore(optimizer.optimizer)"
            kind = type(optimizer)
            raise ConfigError(f"the optimizer is a {kind.__module__}.{kind.__qualname__}, expected {expected}")
        self.optimizer = optimizer
        self.group: dist.ProcessGroup | None = None
        self.replicas = default_replicas() if isinstance(replicas, str) else usable(replicas)
        self._group_of: dict[Tensor, dict[str, Any]] = {}

    def settle(self) -> None:
        """Nobody puts others in their place."""

    def _options(self, param: nn.Parameter) -> dict[str, Any]:
        if param not in self._group_of:  # groups may be added later
            self._group_of = {param: group for group in self.optimizer.param_groups for param in group["params"]}
        if param not in self._group_of:
            raise ConfigError(
                f"a parameter of shape {tuple(param.shape)} is not in the optimizer; make the optimizer over "
                "parameter_groups(model, config) of the model as it is now"
            )
        return self._group_of[param]

    def fragment(self, param: nn.Parameter) -> Fragment:
        """The whole of ``param``.

        Raises:
            ConfigError: it is not in the optimizer, or not an ordinary tensor.
        """
        options = self._options(param)
        plain("a parameter", param)
        state = self.optimizer.ensure_state(param, options["aged"])
        views = {key: value.view(-1) for key, value in state.items()}
        master = views.pop("master", param.detach())
        if not master.is_contiguous():
            raise ConfigError(f"values with strides {master.stride()} are no vector in memory; make them contiguous()")
        return Fragment(0, param.numel(), master.view(-1), views)

    def publish(self) -> None:
        """Round fp32 masters into 16-bit parameters, where there are any."""
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                master = self.optimizer.state[param].get("master")
                if master is not None:
                    param.detach().copy_(master)

    def step_applied(self) -> bool:
        """Whether the clock has moved is all that there is to know: a step that was skipped is not seen here."""
        return True

    def ticks(self) -> int:
        """The optimizer's clock."""
        return self.optimizer.steps_done

    def has_gradients(self) -> bool:
        """See ``ParameterStore``."""
        grads = (param.grad for param in aged_parameters(self.optimizer))
        return any(grad is not None and bool(grad.any()) for grad in grads)

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """See ``ParameterStore``."""
        for group in self.optimizer.param_groups:
            name = group.get("name", "all")
            for param in group["params"]:
                yield "weights", name, own(param.detach())
                if param.grad is not None:
                    yield "gradients", name, own(param.grad)
                for key, value in self.optimizer.state[param].items():
                    yield state_kind(key), name, own(value)


def aged_parameters(optimizer: AgedOptimizer) -> list[nn.Parameter]:
    """What ``optimizer`` trains of the parameters that can be regrown."""
    groups = [group["params"] for group in optimizer.param_groups if group["aged"]]
    return [param for params in groups for param in params if param.requires_grad]


def state_kind(key: str) -> str:
    """Which kind of bytes an optimizer state tensor is."""
    return {"birth": "ages", "master": "master"}.get(key, "moments")
