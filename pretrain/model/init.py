"""Initial weights as a pure function of (seed, parameter name).

Every tensor has its own generator, so its values do not depend on which other tensors a rank holds:
any number of tensor-parallel ranks, pipeline stages or data-parallel ranks starts from the same model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smet.seeds import generator


def initial_weight(name: str, shape: Sequence[int], *, seed: int, std: float) -> Tensor:
    """Return the whole initial tensor in fp32 on the CPU.

    Args:
        name: Global parameter name, such as ``model.layers.3.mlp.up_proj.weight``.
        shape: Shape of the whole tensor, before any parallel split.
        seed: Seed of the run.
        std: Standard deviation of the normal distribution; a norm's weight is 1 instead.
    """
    if "norm" in name:
        return torch.ones(*shape)
    return torch.normal(0.0, std, tuple(shape), generator=generator(seed, "initial weight", name))


@torch.no_grad()
def initialize(module: nn.Module, *, seed: int, std: float, prefix: str = "") -> None:
    """Fill every parameter of ``module`` in place, whatever its dtype or device.

    Args:
        module: A model, or one block of it; its parameters are whole (not split, not yet sparse).
        seed: Seed of the run.
        std: Standard deviation, ``ModelConfig.initializer_range``.
        prefix: What stands before the block's names in the whole model, such as ``model.layers.3.``.
    """
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_weight(prefix + name, parameter.shape, seed=seed, std=std))
