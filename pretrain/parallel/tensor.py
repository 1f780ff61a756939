"""Tensor parallelism of a model's blocks, by the roles of its weights (``pretrain.models.inventory``).

Column-parallel layers (in a LLaMA q, k, v, gate, up, head) own rows of their weight, row-parallel ones (o, down)
columns, the embedding rows of the vocabulary. The stream is whole between blocks, or split along
the sequence with sequence parallelism. Collectives stand at three places only: behind each norm, behind
each row-parallel layer's product, and in the embedding and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.layout import Layout
from pretrain.models.functions import IGNORED
from pretrain.models.inventory import Inventory, Role
from pretrain.models.parts import Parts
from pretrain.parallel.collectives import enter, leave, vocabulary_cross_entropy
from smet.linear import SparseLinear, sparse_layers


class VocabularyEmbedding(nn.Embedding):
    """The rows of the embedding that this rank owns; other tokens come out as 0 and are summed in."""

    def __init__(self, vocabulary: int, hidden: int, *, layout: Layout, sequence: bool):
        super().__init__(vocabulary // layout.tensor_size, hidden)
        self.layout, self.sequence = layout, sequence

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``(b, s)`` to ``(b, s, h)``, or this rank's chunk of it under sequence parallelism."""
        local = tokens - self.layout.tensor_rank * self.num_embeddings
        mine = (local >= 0) & (local < self.num_embeddings)
        partial_sum = F.embedding(torch.where(mine, local, 0), self.weight) * mine.unsqueeze(-1)
        return leave(partial_sum, self.layout.tensor_group, self.sequence)


def parts(layout: Layout, sequence: bool) -> Parts:
    """The layers of one tensor-parallel rank, which know their roles. With tensor size 1 they are whole."""
    size = layout.tensor_size
    made = Parts() if size == 1 else Parts(
        column=lambda inputs, outputs, bias=False: nn.Linear(inputs, outputs // size, bias=bias),
        row=lambda inputs, outputs, bias=False: nn.Linear(inputs // size, outputs, bias=bias),
        embedding=partial(VocabularyEmbedding, layout=layout, sequence=sequence),
        head=lambda inputs, outputs: nn.Linear(inputs, outputs // size, bias=False),
        cross_entropy=partial(_cross_entropy, group=layout.tensor_group),
    )  # fmt: skip
    return replace(
        made,
        column=partial(_in_role, Role.COLUMN, made.column),
        row=partial(_in_role, Role.ROW, made.row),
        embedding=partial(_in_role, Role.EMBEDDING, made.embedding),
        head=partial(_in_role, Role.HEAD, made.head),
    )


MADE_AS = "made_as"
"""Attribute of a module: the role of the weight that its maker gave it."""


def _in_role(role: Role, maker: Callable[..., nn.Module], *sizes: int, **options: Any) -> nn.Module:
    module = maker(*sizes, **options)
    vars(module)[MADE_AS] = role
    return module


def require_role(name: str, owner: nn.Module, role: Role) -> None:
    """Refuse a weight that the model makes in another role than its inventory lists: the cut would be another one.

    Raises:
        ConfigError: names both.
    """
    if role not in (Role.COLUMN, Role.ROW, Role.EMBEDDING, Role.HEAD):
        return
    made = vars(owner).get(MADE_AS)
    if made is not role:
        by = "by itself" if made is None else f"by parts.{made.value}"
        raise ConfigError(
            f"the model makes {name} {by}, its inventory lists it with role {role.name}; expected parts.{role.value},"
            " or another role (docs/families.md)"
        )


def _cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> Tensor:
    losses = vocabulary_cross_entropy(logits, targets, group)
    return (losses * (targets != IGNORED)).sum() / targets.numel()


def role_of(parameter: nn.Parameter) -> Role:
    """Role of a parameter that went through ``connect``."""
    role: Role = parameter.role  # type: ignore[attr-defined]
    return role


def is_replicated(parameter: nn.Parameter) -> bool:
    """Whether every tensor-parallel rank holds all of this parameter."""
    return role_of(parameter).cut is None


def shard(role: Role, whole: Tensor, layout: Layout) -> Tensor:
    """This rank's part of a whole parameter (as ``nn.Linear`` stores it)."""
    if layout.tensor_size == 1 or role.cut is None:
        return whole
    return whole.chunk(layout.tensor_size, dim=role.cut)[layout.tensor_rank]


def whole_shape(role: Role, shape: Sequence[int], layout: Layout) -> list[int]:
    """Shape of the whole parameter of which this rank's shard has ``shape``."""
    whole = list(shape)
    if layout.tensor_size > 1 and role.cut is not None:
        whole[role.cut] *= layout.tensor_size
    return whole


def connect(model: nn.Module, inventory: Inventory, layout: Layout, sequence: bool) -> None:
    """Write its role on every parameter of a (sparse) model made of ``parts``, and put the collectives in.

    Call it once, after the layers have been made sparse and before an engine wraps the model.
    """
    for name, parameter in model.named_parameters():
        parameter.role = inventory.role(name)  # type: ignore[attr-defined]
    if layout.tensor_size == 1:
        return
    group = layout.tensor_group
    for module in model.modules():
        own = [role_of(parameter) for parameter in module.parameters(recurse=False)]
        if Role.SCALE in own:
            module.register_forward_hook(_passing(enter, group, sequence))
        elif Role.ROW in own:
            # Always a SparseLinear: those that stay dense are stored as full ones. A bias comes behind the sum.
            assert isinstance(module, SparseLinear)
            module.behind_product = lambda product: leave(product, group, sequence)
    for parameter in model.parameters():
        if not is_replicated(parameter):
            # DeepSpeed counts unmarked parameters once in the gradient norm, marked ones on every rank.
            parameter.model_parallel = True  # type: ignore[attr-defined]
        elif sequence:
            parameter.register_hook(partial(_summed, group=group))


def _passing(action: Any, group: Any, sequence: bool) -> Any:
    return lambda module, inputs, output: action(output, group, sequence)


def _summed(grad: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What every rank holds sees only its chunk of the sequence, so its gradient is a partial sum."""
    total = grad.clone()
    dist.all_reduce(total, group=group)
    return total


def offsets(model: nn.Module, layout: Layout) -> dict[str, tuple[int, int]]:
    """(start of this rank's shard, length of the whole) of each logical vector that is split. Collective.

    Sparse shards differ in their number of active weights, so lengths are exchanged.
    """
    if layout.tensor_size == 1:
        return {}
    own = dict(_lengths(model))
    everyone: list[Any] = [None] * layout.tensor_size
    dist.all_gather_object(everyone, own, group=layout.tensor_control)
    return {
        name: (sum(other[name] for other in everyone[: layout.tensor_rank]), sum(other[name] for other in everyone))
        for name in own
    }


def _lengths(model: nn.Module) -> Iterator[tuple[str, int]]:
    for name, parameter in model.named_parameters():
        if not is_replicated(parameter):
            yield name, getattr(parameter, "ds_numel", parameter.numel())
    for name, layer in sparse_layers(model).items():
        if not layer.is_full:
            yield f"{name}.mask", layer.grid.mask_bytes
