"""Experts whose matrices a model keeps in one parameter: there each becomes a linear layer of its own.

Transformers has the matrices of all experts of a layer as ``gate_up_proj`` and ``down_proj``, ``(experts, out, in)``,
and multiplies by them one by one, grouped or batched. An ``ExpertStack`` takes such a parameter's place: a layer for
each expert, dense or sparse, named ``gate_up_proj_stack.3``. While the module computes, and only then, its attribute
``gate_up_proj`` is the stack of their weights, so that its own code goes on as it was written.

Gradients are those that the parameter would get: an expert to which no token was sent gets zeros. So its moments decay
and its weights age as all others do, and ranks that send tokens elsewhere hold the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from smet.linear import SparseLinear
from smet.stacked import are_alike, stacked
from smet.zero import is_partitioned

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of an experts module that hold a matrix per expert."""
SUFFIX = "_stack"
"""What follows a parameter's name in that of its stack. Not the name alone: transformers would take what is saved under
it for the parameter, and cut it up."""


class DenseExpert(nn.Linear):
    """The matrix of one expert, as a layer that gives its weight where it is called with nothing."""

    def forward(self, x: Tensor | None = None) -> Tensor:
        """W ``(out, in)``, or the product with ``x``."""
        return self.weight if x is None else super().forward(x)


class SparseExpert(SparseLinear):
    """The same, sparse. It is called for its weight, so that engines gather its values for it as for a product's."""

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Dense W ``(out, in)``, or the product with ``x``."""
        return self.weight if x is None else super().forward(x)


class ExpertStack(nn.Module):
    """In the place of one parameter: a layer for each expert.

    Args:
        of: the parameter's name.
        turned: whether it is ``(experts, in, out)``.
        experts: the layers.
    """

    def __init__(self, of: str, turned: bool, experts: Iterable[nn.Module]):
        super().__init__()
        self.of, self.turned = of, turned
        for number, expert in enumerate(experts):
            self.add_module(str(number), expert)

    def forward(self, first: int = 0, last: int | None = None) -> Tensor:
        """What the parameter would be, or its slices from ``first`` to before ``last``; made anew at each call."""
        experts = list(self.children())[first:last]
        sparse = [expert for expert in experts if isinstance(expert, SparseExpert)]
        if len(sparse) == len(experts) and are_alike(sparse):
            together = stacked(sparse)
            return together.transpose(1, 2).contiguous() if self.turned else together
        weights = [expert() for expert in experts]
        return torch.stack([weight.t() for weight in weights] if self.turned else weights)


def stackable(module: nn.Module) -> list[str]:
    """Names of the parameters of ``module`` that hold a matrix per expert, and are read by its own code alone.

    The flags are what transformers' ``use_experts_implementation`` leaves on a module.
    """
    if not all(isinstance(getattr(module, flag, None), bool) for flag in ("is_transposed", "has_gate")):
        return []
    count = getattr(module, "num_experts", None)
    return [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if name in PROJECTIONS and parameter.dim() == 3 and parameter.shape[0] == count
    ]


def stack_of(module: nn.Module, name: str) -> ExpertStack:
    """A stack for the parameter ``name`` of ``module``, which stays as it is. Unless turned, they share memory."""
    parameter, turned = module.get_parameter(name), bool(module.is_transposed)
    experts = []
    for matrix in parameter.detach().unbind(0):
        weight = matrix.t().contiguous() if turned else matrix
        expert = DenseExpert(weight.shape[1], weight.shape[0], bias=False, device="meta")
        expert.weight = nn.Parameter(weight, parameter.requires_grad)
        experts.append(expert.train(module.training))
    return ExpertStack(name, turned, experts)


def stacks_in(module: nn.Module) -> list[ExpertStack]:
    """The stacks right below ``module``."""
    return [child for child in module.children() if isinstance(child, ExpertStack)]


def unstack(module: nn.Module, stack: ExpertStack) -> None:
    """Put ``stack`` in the place of the parameter of ``module`` that it was made of."""
    del module._parameters[stack.of]
    module.add_module(stack.of + SUFFIX, stack)
    if lend not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(lend)
        module.register_forward_hook(take_back, always_call=True)


def restack(model: nn.Module) -> None:
    """Give parameters back to all modules of ``model`` in the place of stacks whose experts are all dense."""
    for module in list(model.modules()):
        stacks = stacks_in(module)
        for stack in stacks:
            experts = list(stack.children())
            if all(isinstance(expert, DenseExpert) for expert in experts):
                trained = any(parameter.requires_grad for parameter in stack.parameters())
                delattr(module, stack.of + SUFFIX)
                module.register_parameter(stack.of, nn.Parameter(stack().detach(), trained))
        if stacks and not stacks_in(module):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number in [number for number, hook in hooks.items() if hook in (lend, take_back)]:
                    del hooks[number]
                    module._forward_hooks_always_called.pop(number, None)


@contextmanager
def unstacked(model: nn.Module, stacks: Iterable[tuple[nn.Module, ExpertStack]]) -> Iterator[None]:
    """``unstack`` all of these; if what is done inside fails, those that are dense still are parameters again."""
    for module, stack in stacks:
        unstack(module, stack)
    try:
        yield
    except BaseException:
        restack(model)
        raise


# Functions of this file are the hooks, and not methods of an object, so that copies of a module lend what is theirs.


def lend(module: nn.Module, *_: object) -> None:
    """Let the attributes of ``module`` be the stacks' weights."""
    if torch.compiler.is_compiling():
        from smet import untraced

        return untraced.call(lend, module)
    stacks = stacks_in(module)
    for stack in stacks:
        vars(module)[stack.of] = stack()
    if _may_be_made_again(stacks):
        lent = {vars(module)[stack.of].untyped_storage().data_ptr(): stack for stack in stacks}
        kept = vars(module)[_KEPT] = saved_tensors_hooks(partial(_keep, lent), _unpack)
        kept.__enter__()


def take_back(module: nn.Module, *_: object) -> None:
    """The end of that."""
    if torch.compiler.is_compiling():
        from smet import untraced

        return untraced.call(take_back, module)
    if (kept := vars(module).pop(_KEPT, None)) is not None:
        kept.__exit__(None, None, None)
    for stack in stacks_in(module):
        vars(module).pop(stack.of, None)


# What a product saves of a lent weight for the backward pass would hold it until then, of all layers at once. So
# autograd keeps how to make it again, unless somebody else decides what is kept (gradient checkpointing), or an engine
# has cut the values up and gathers them only where a layer computes.

_KEPT = "_lent_weights_are_not_kept"


def _may_be_made_again(stacks: Iterable[ExpertStack]) -> bool:
    autograd: Any = torch._C._autograd  # nothing public tells
    if not torch.is_grad_enabled() or not autograd._saved_tensors_hooks_is_enabled():
        return False
    cut = any(is_partitioned(parameter) for stack in stacks for parameter in stack.parameters())
    return autograd._top_saved_tensors_default_hooks(True) is None and not cut


@dataclass(frozen=True)
class _Part:
    """A part of a lent weight."""

    stack: ExpertStack
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    versions: list[object]

    def made(self) -> Tensor:
        """The same numbers again.

        Raises:
            RuntimeError: there are others now.
        """
        if _versions(self.stack) != self.versions:
            raise RuntimeError(
                f"weights of {self.stack.of}, needed for the gradient, were changed since they were multiplied by; step"
                " after backward"
            )
        end = self.offset + sum((side - 1) * step for side, step in zip(self.size, self.stride, strict=True))
        expert: Any = next(self.stack.children())
        each = expert.in_features * expert.out_features
        first = self.offset // each
        with torch.no_grad():
            slices = self.stack(first, end // each + 1)
        return slices.as_strided(self.size, self.stride, self.offset - first * each)


def _versions(stack: ExpertStack) -> list[object]:
    """What tells whether the weights are those that they were."""
    return [
        (expert.values_version, expert.topology_version) if isinstance(expert, SparseLinear) else expert.weight._version
        for expert in stack.children()
    ]


def _keep(lent: dict[int, ExpertStack], tensor: Tensor) -> Tensor | _Part:
    stack = lent.get(tensor.untyped_storage().data_ptr())
    if stack is None:
        return tensor.detach()
    return _Part(stack, tensor.size(), tensor.stride(), int(tensor.storage_offset()), _versions(stack))


def _unpack(kept: Tensor | _Part) -> Tensor:
    return kept.made() if isinstance(kept, _Part) else kept
