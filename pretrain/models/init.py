"""Initial weights as a pure function of (seed, parameter name).

Every tensor has its own generator, so its values do not depend on which other tensors a rank holds:
any number of tensor-parallel ranks, pipeline stages or data-parallel ranks starts from the same model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.models import inventory_of
from pretrain.models.family import FamilyConfig
from pretrain.models.inventory import Role
from smet.seeds import generator


def initial_weight(name: str, role: Role, shape: Sequence[int], *, seed: int, std: float) -> Tensor:
    """Return the whole initial tensor in fp32 on the CPU.

    Args:
        name: Global parameter name, such as ``model.layers.3.mlp.up_proj.weight``.
        role: Its role; the factors of a norm start at 1, all that is added at 0.
        shape: Shape of the whole tensor, before any parallel split.
        seed: Seed of the run.
        std: Standard deviation of the normal distribution from which all others are drawn.
    """
    if role.start is not None:
        return torch.full(tuple(shape), role.start)
    return torch.normal(0.0, std, tuple(shape), generator=generator(seed, "initial weight", name))


@torch.no_grad()
def initialize(
    module: nn.Module, model: FamilyConfig, *, seed: int, std: float | None = None, prefix: str = ""
) -> None:
    """Fill every parameter of ``module`` in place, whatever its dtype or device.

    Args:
        module: A model, or one block of it; its parameters are whole (not split, not yet sparse).
        model: The ``model`` section that it was made by.
        seed: Seed of the run.
        std: Standard deviation; default is that of ``model``.
        prefix: What stands before the block's names in the whole model, such as ``model.layers.3.``.
    """
    inventory = inventory_of(model)
    for name, parameter in module.named_parameters():
        role, own = inventory.role(prefix + name), inventory.deviation(prefix + name) if std is None else std
        parameter.copy_(initial_weight(prefix + name, role, parameter.shape, seed=seed, std=own))
