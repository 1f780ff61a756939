"""What a layer computes, and who else wants to know of it: called in turn where nobody looks on (see
``smet.operators``, which has the same functions for those who do)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smet import compute, copies

if TYPE_CHECKING:
    from smet.compute import Compute
    from smet.linear import SparseLinear
    from smet.permutation import Order


def read(order: Order, x: Tensor) -> Tensor:
    """Features ``(..., n)`` as stored columns meet them."""
    return order.read(x)


def write(order: Order, y: Tensor) -> Tensor:
    """What stored rows make ``(..., n)``, feature by feature."""
    return order.write(y)


def product(layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
    """``x W^T`` of stored features: ``(..., in)`` to ``(..., out)``."""
    copies.require_whole(layer)
    y: Tensor = _SparseMatmul.apply(x, values, layer)
    return y


def forward(layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
    """``product`` by whoever serves the layer, without a graph."""
    with torch.amp.autocast(x.device.type, enabled=False):
        return compute.choose(layer, x).forward(layer, x, values)


def values_gradient(layer: SparseLinear, x: Tensor, grad: Tensor, chosen: Compute) -> Tensor:
    """Gradient of the values ``(active * tile_size,)``, of which everybody learns who asked the layer for it."""
    # Whoever grows weights by the dense gradient needs all of it, which only the dense backend makes.
    by = chosen if layer.gradient_sink is None else compute.dense_backend()
    gradient = layer.without_closed(by.values_gradient(layer, x, grad))
    if layer.values_sink is not None:
        layer.values_sink(layer, gradient)
    return gradient


class _SparseMatmul(torch.autograd.Function):
    """Linear map whose products are made by whoever serves the layer; what they need of it lives only inside them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, layer: SparseLinear) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return forward(layer, x, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        layer, grad = ctx.layer, grads[0]
        # Who differentiates the backward pass itself needs products that leave a graph.
        chosen = compute.dense_backend() if torch.is_grad_enabled() else compute.choose(layer, x)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = chosen.input_gradient(layer, grad, values)
        if ctx.needs_input_grad[1]:
            grad_values = values_gradient(layer, x, grad, chosen)
        return grad_x, grad_values, None


def dense(layer: SparseLinear, values: Tensor) -> Tensor:
    """W ``(out, in)`` of features as they are, in memory of its own."""
    canonical = layer.canonical_weight(values)
    if layer.is_full:  # whose matrix is its values
        canonical = canonical.clone()
    return layer.orders.natural(canonical.t() if layer.transposed else canonical)


def dense_gradient(layer: SparseLinear, grad: Tensor) -> Tensor:
    """Gradient of the values of that of ``dense``, of which everybody learns who asked the layer for it."""
    grad = layer.orders.stored(grad)
    gradient = layer.without_closed(layer.compress_gradient((grad.t() if layer.transposed else grad).contiguous()))
    if layer.values_sink is not None:
        layer.values_sink(layer, gradient)
    return gradient
