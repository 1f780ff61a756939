"""Where a parameter's master weights and optimizer state live: this rank's fragment of each.

``LocalStore`` is for plain torch, where a fragment is the whole parameter. ``smet.zero`` has the
same interface for DeepSpeed's partitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist
from torch import Tensor, nn

from smet.optimizer import SmetAdamW


@dataclass
class Fragment:
    """This rank's contiguous piece of one parameter, as live 1-D views.

    ``state`` has ``exp_avg``, ``exp_avg_sq`` and, for parameters that can be regrown, ``birth``.
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

    optimizer: SmetAdamW
    group: dist.ProcessGroup | None
    """Ranks over which fragments of a parameter are spread; None = this rank has all of it."""

    def fragment(self, param: nn.Parameter) -> Fragment:
        """This rank's fragment of ``param``; empty where it owns nothing."""

    def publish(self) -> None:
        """Copy all master weights into the parameters that compute. Collective."""

    def step_applied(self) -> bool:
        """Whether the engine's last step changed weights (False after an overflow)."""

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, optimizer group name, tensor) of everything held on this rank now.

        Kinds: ``weights``, ``gradients``, ``master``, ``moments``, ``ages``.
        """


class LocalStore:
    """The whole of every parameter on this rank, updated by ``SmetAdamW`` itself."""

    def __init__(self, optimizer: SmetAdamW):
        self.optimizer = optimizer
        self.group: dist.ProcessGroup | None = None
        self._group_of = {param: group for group in optimizer.param_groups for param in group["params"]}

    def fragment(self, param: nn.Parameter) -> Fragment:
        """The whole of ``param``."""
        state = self.optimizer.ensure_state(param, self._group_of[param]["aged"])
        views = {key: value.view(-1) for key, value in state.items()}
        master = views.pop("master", param.detach().view(-1))
        return Fragment(0, param.numel(), master, views)

    def publish(self) -> None:
        """Round fp32 masters into 16-bit parameters, where there are any."""
        for param in self._group_of:
            master = self.optimizer.state[param].get("master")
            if master is not None:
                param.detach().copy_(master)

    def step_applied(self) -> bool:
        """Plain torch never skips a step."""
        return True

    def live_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """See ``ParameterStore``."""
        for param, group in self._group_of.items():
            name = group.get("name", "all")
            yield "weights", name, param.detach()
            if param.grad is not None:
                yield "gradients", name, param.grad
            for key, value in self.optimizer.state[param].items():
                yield state_kind(key), name, value


def state_kind(key: str) -> str:
    """Which kind of bytes an optimizer state tensor is."""
    return {"birth": "ages", "master": "master"}.get(key, "moments")
