"""What only computing tells of a family: whether its model.py works on shards, and keeps what its ``saved`` says.

One process is enough, and no process group. A dry run asks ``require_cut`` of every model; a family's own test may
call both (docs/families.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.models import family_of, inventory_of
from pretrain.models.inventory import Kind, Place
from pretrain.models.parts import Parts

TOKENS = 5


def shapes_of(size: int) -> Parts:
    """Layers as one of ``size`` tensor-parallel ranks has them, without what sums up over the ranks."""
    return Parts(
        column=lambda inputs, outputs, bias=False: nn.Linear(inputs, outputs // size, bias=bias),
        row=lambda inputs, outputs, bias=False: nn.Linear(inputs // size, outputs, bias=bias),
        head=lambda inputs, outputs: nn.Linear(inputs, outputs // size, bias=False),
        cross_entropy=lambda logits, targets: logits.sum() + targets.sum(),
    )


def require_cut(config: RunConfig, ranks: int | None = None) -> None:
    """Compute the loss of one shard on the meta device, where tensors have shapes only.

    A product that the family uses as another kind than it declares does not fit its neighbours then, which in one
    process nothing would tell.

    Args:
        ranks: tensor-parallel ranks; default is the fewest that can share this model, if any can.

    Raises:
        ConfigError: whole, the model computes, and cut it does not.
    """
    shared = math.gcd(*inventory_of(config.model).shape.shared.values())
    ranks = ranks or next((size for size in range(2, shared + 1) if shared % size == 0), 1)
    for size in (1, ranks):
        try:
            _loss(config, size)
        except Exception as error:  # whatever torch says of shapes that do not fit
            if size == 1:
                return  # it needs values to compute: nothing to compare with
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"model.family '{config.model.family}' does not compute on {ranks} tensor-parallel ranks ({text:.300});"
                " what parts.column gives is a rank's share of the outputs, parts.row takes a share of the inputs, and"
                " the number of heads follows from what they give: see docs/families.md"
            ) from error


def _loss(config: RunConfig, size: int) -> Tensor:
    with torch.device("meta"):
        model: Any = family_of(config.model).model.Model(config.model, shapes_of(size))
        loss: Tensor = model.loss(torch.zeros(1, TOKENS, dtype=torch.long))
    return loss


def require_saved(config: RunConfig, within: float = 0.05) -> None:
    """Compare the bytes that autograd keeps of a layer with what ``saved`` says, in fp32 in one process.

    Args:
        config: of a model that is small enough to be computed here, without activation checkpointing.
        within: relative difference that is allowed; small models keep odd bytes beside the large tensors.

    Raises:
        ConfigError: they differ; names both numbers.
    """
    family, inventory = family_of(config.model), inventory_of(config.model)
    tokens = config.data.seq_length
    place = Place(width=4, tensor=1, sequence=False, documents=False)
    makers = dict(family.model.blocks(config.model, Parts(), False))
    for block in inventory.blocks:
        if block.kind is not Kind.LAYER:
            continue
        module, x = makers[block.name](), torch.randn(1, tokens, inventory.shape.width, requires_grad=True)
        held: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda one, held=held: _keep(one, held), lambda one: one):  # type: ignore[misc]
            result = module(x, None)
        own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        found = sum(one.untyped_storage().nbytes() for at, one in held.items() if at not in own) / tokens
        said = inventory.saved(block, place)
        if abs(found - said) > within * found:
            raise ConfigError(
                f"model.family '{config.model.family}': saved() gives {said:.6g} bytes per token for {block.name},"
                f" autograd keeps {found:.6g}"
            )
        del result


def _keep(tensor: Tensor, held: dict[int, Tensor]) -> Tensor:
    held[tensor.untyped_storage().data_ptr()] = tensor
    return tensor
