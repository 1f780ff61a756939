"""The dense weight of a sparse layer, for code that reads ``layer.weight`` instead of calling the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smet.dtensors import is_cut

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
    if torch.is_grad_enabled() and layer.values.requires_grad:
        weight: Tensor = _DenseWeight.apply(layer.values, layer)
        return weight.unsqueeze(0).unbind(0)[0]
    if torch.is_grad_enabled():  # a frozen layer: an inference tensor could not be saved for its input's gradient
        return _dense(layer, layer.values.detach())
    with torch.inference_mode():
        return _dense(layer, layer.values)


def _dense(layer: SparseLinear, values: Tensor) -> Tensor:
    canonical = layer.canonical_weight(values)
    if layer.is_full:  # whose matrix is its values
        canonical = canonical.clone()
    return layer.orders.natural(canonical.t() if layer.transposed else canonical)


class _DenseWeight(torch.autograd.Function):
    """Active values to dense W, and W's gradient to theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        return _dense(layer, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        layer = ctx.layer
        grad = layer.orders.stored(grad)
        values = layer.compress_gradient((grad.t() if layer.transposed else grad).contiguous())
        values = layer.without_closed(values)
        if layer.values_sink is not None:
            layer.values_sink(layer, values)
        return values, None
