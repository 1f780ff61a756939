"""The dense weight of a sparse layer, for code that reads ``layer.weight`` instead of calling the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smet import products
from smet.dtensors import is_cut
from smet.kernels.watched import watched

if TYPE_CHECKING:
    from smet.linear import SparseLinear


def readable_weight(layer: SparseLinear) -> Tensor:
    """W ``(out, in)``, made anew for each reader; gradients flow back to the active values.

    What is written into it would be lost, so torch refuses in-place changes, by whichever rule of its own holds
    where it is read: results of unbind are not to be written while gradients are on, inference tensors while they
    are off. ``.data`` gets around both, and so does who reads it with gradients on and writes with gradients off, as
    the functions of ``nn.init`` do: that is lost.

    Raises:
        RuntimeError: the values are on other ranks at this moment (ZeRO-3 and ``fully_shard``, outside the layer's own
            forward).
    """
    wanted = layer.active * layer.grid.tile_size
    if layer.values.numel() != wanted:
        raise RuntimeError(
            f"weight of a SparseLinear was read while its {wanted} values are partitioned; gather them first "
            "(deepspeed.zero.GatheredParameters)"
        )
    if is_cut(layer.values):
        raise RuntimeError(
            f"weight of a SparseLinear was read while fully_shard has its {wanted} values cut over ranks; call"
            " unshard() of the module that it was called on first, on all ranks"
        )
    if watched(layer.values, layer.values):
        from smet import operators

        return operators.weight(layer)
    if torch.is_grad_enabled() and layer.values.requires_grad:
        weight: Tensor = _DenseWeight.apply(layer.values, layer)
        return weight.unsqueeze(0).unbind(0)[0]
    if torch.is_grad_enabled():  # a frozen layer: an inference tensor could not be saved for its input's gradient
        return products.dense(layer, layer.values.detach())
    with torch.inference_mode():
        return products.dense(layer, layer.values)


class _DenseWeight(torch.autograd.Function):
    """Active values to dense W, and W's gradient to theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        return products.dense(layer, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return products.dense_gradient(ctx.layer, grads[0]), None
