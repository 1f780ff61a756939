"""torch's FSDP2 (``fully_shard``): each parameter is cut by itself along its first dimension, and is its own master.

A layer's values are a vector, so that each rank has a range of its active weights, and everything goes the way it goes
under ZeRO. State lies beside the parameters as DTensors, from which torch's own checkpoints follow.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smet import dtensors
from smet.agreement import differing
from smet.errors import ConfigError
from smet.linear import sparse_layers
from smet.mask import digest
from smet.optim.aged import AgedOptimizer
from smet.settings import settings_of
from smet.store import Fragment, LocalStore, aged_parameters


class FsdpStore(LocalStore):
    """The fragments of a model that ``fully_shard`` cut. Collective over its ranks; creating it makes all state.

    Args:
        optimizer: over ``parameter_groups(model, config)``, made after ``fully_shard``.
        model: what ``fully_shard`` was called on last, with all of its blocks.

    Raises:
        ConfigError: the optimizer does not hold the model's parameters, some of these are not cut, or over other ranks;
            ranks made other models.
    """

    def __init__(self, optimizer: AgedOptimizer, model: nn.Module):
        super().__init__(optimizer, replicas=None)
        self.model = model
        self.settle()
        self.mesh = self._common_mesh()
        self.group = self.mesh.get_group() if self.mesh.size() > 1 else None
        self.replicas = self.group
        self._rank = int(self.mesh.get_local_rank())
        if self.group is not None and dist.get_rank(self.group) != self._rank:
            raise ConfigError("the ranks of fully_shard's mesh are not in ascending order; make it by init_device_mesh")
        self._require_one_model()
        self._forget_others()
        self._summed_at: int | None = None
        """The optimizer's clock when torch last summed gradients over ranks. Until it does, they wait inside of it."""
        self._watch_sums()
        for group in optimizer.param_groups:
            for param in group["params"]:
                optimizer.ensure_state(param, group["aged"])

    def _common_mesh(self) -> Any:
        held = {id(param) for group in self.optimizer.param_groups for param in group["params"]}
        found: list[Any] = []
        for name, param in self.model.named_parameters():
            if not param.requires_grad:
                continue
            if not dtensors.is_cut(param):
                raise ConfigError(
                    f"{name} is not cut, so that nobody averages its gradient over ranks; call fully_shard on the whole"
                    " model after its blocks, without ignored_params"
                )
            dtensors.require_range(name, param)
            if id(param) not in held:
                raise ConfigError(
                    f"{name} is not in the optimizer; make the optimizer after fully_shard, of this model"
                )
            mesh: Any = param
            found.append(mesh.device_mesh)
            if found[0] != found[-1]:
                raise ConfigError(f"{name} is cut over another mesh than parameters before it, expected one for all")
        if not found:
            raise ConfigError("the model has no parameters to train")
        return found[0]

    def _forget_others(self) -> None:
        """Accelerate asks an optimizer for its state, and then puts the parts in the place of whole parameters."""
        for param in self._others():
            del self.optimizer.state[param]

    def _others(self) -> set[Tensor]:
        """Those that the optimizer has state of, and does not step."""
        return self.optimizer.state.keys() - {p for group in self.optimizer.param_groups for p in group["params"]}

    def _require_one_model(self) -> None:
        """Masks are no parameters: each rank keeps a part of its own, and together they have to be one."""
        layers = sparse_layers(self.model)
        own = {
            "settings": repr(settings_of(self.model)),
            "sparse layers": [(name, layer.grid, layer.active, layer.transposed) for name, layer in layers.items()],
            "masks": [(name, digest(layer.mask)) for name, layer in layers.items() if layer.mask is not None],
            "the optimizer's clocks": self.optimizer.steps_done,
            "parameters with state": (lost := self._lost()),
            "frozen parameters": [name for name, param in self.model.named_parameters() if not param.requires_grad],
        }
        if found := differing(own, self.group):
            raise ConfigError(
                f"{', '.join(found)} differ between the ranks over which fully_shard cut the model; make it alike on"
                " all of them: the same settings and state, and the same seed where first masks follow from weights"
            )
        if lost:
            raise ConfigError(
                "the optimizer's state was loaded before fully_shard cut its parameters; load it after attach"
            )

    def _lost(self) -> bool:
        """Whether there is state of steps that were done, and all of it is of parameters that nobody has any more."""
        others = self._others()
        return bool(others) and self.optimizer.steps_done > 0 and len(others) == len(self.optimizer.state)

    def settle(self) -> None:
        """See ``ParameterStore``."""
        dtensors.let_go(self.model)

    def fragment(self, param: nn.Parameter) -> Fragment:
        """This rank's range of ``param``; empty where there are fewer entries than ranks.

        Raises:
            ConfigError: it is not in the optimizer.
        """
        options = self._options(param)
        state = self.optimizer.ensure_state(param, options["aged"])
        views = {key: dtensors.own(value).view(-1) for key, value in state.items()}
        master = views.pop("master", dtensors.own(param).view(-1))
        rows, total = param.shape[0], param.numel()
        start = min(self._rank * -(-rows // self.mesh.size()), rows) * (total // max(1, rows))
        return Fragment(start, total, master, views)

    def has_gradients(self) -> bool:
        """See ``ParameterStore``. Collective."""
        grads = [dtensors.own(param.grad) for param in aged_parameters(self.optimizer) if param.grad is not None]
        waiting = self._summed_at != self.ticks() or any(bool(grad.any()) for grad in grads)
        if self.group is not None:  # a rank's part may be empty, or 0
            told = torch.tensor(int(waiting), device=self.mesh.device_type)
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
            waiting = bool(told)
        if not waiting:
            self._summed_at = None
        return waiting

    def _watch_sums(self) -> None:
        store = weakref.ref(self)

        def take_note(_: Tensor) -> None:
            if (itself := store()) is not None:
                itself._summed_at = itself.ticks()

        for param in aged_parameters(self.optimizer):
            param.register_post_accumulate_grad_hook(take_note)
