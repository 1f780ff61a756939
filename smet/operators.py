"""What layers compute, as operators of torch: what is seen by those who look on (``smet.kernels.watched``).

``torch.compile`` puts them into its graph, ``FakeTensorMode`` and the meta device ask them for shapes, dispatch modes
see them pass. A layer goes in as its ticket. Its mask is no operand: it is asked for whenever a product is made, in the
backward pass again, so that nothing holds it meanwhile, and what was traced goes on with other masks. For the
same reason who multiplies, who collects gradients and where a mask is are decided when the operator runs.

Their gradients are operators too, which cannot be differentiated again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from smet import compute, copies, products
from smet.kernels import checks
from smet.kernels.reorder import reorder as moved
from smet.kernels.watched import stands_in
from smet.tickets import holder_of

if TYPE_CHECKING:
    from smet.linear import SparseLinear
    from smet.permutation import Order

__all__ = ["begin", "product", "read", "weight", "write"]

LOOKING_UP = (torch.Tag.cudagraph_unsafe,)
"""What is looked up when an operator runs, such as where tiles are, would be recorded once and for all."""


def product(layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
    """See ``smet.products.product``.

    Raises:
        ConfigError: an argument is neither a plain tensor nor one that stands for such a one.
    """
    checks.traceable("the input of a sparse layer", x)
    checks.traceable("values", values)
    ticket = _ticket_among(values, layer.ticket)
    y: Tensor = torch.ops.smet.product.default(x, values, ticket, layer.in_features, layer.out_features)
    return y


def weight(layer: SparseLinear) -> Tensor:
    """W ``(out, in)`` to read; see ``smet.weight``.

    Raises:
        ConfigError: see ``product``.
    """
    checks.traceable("values", layer.values)
    ticket = _ticket_among(layer.values, layer.ticket)
    dense: Tensor = torch.ops.smet.weight.default(layer.values, ticket, layer.out_features, layer.in_features)
    return dense


def read(order: Order, x: Tensor) -> Tensor:
    """See ``smet.products.read``."""
    checks.traceable("the input of a sparse layer", x)
    y: Tensor = torch.ops.smet.reorder.default(x, _ticket_among(x, order.ticket), False)
    return y


def write(order: Order, y: Tensor) -> Tensor:
    """See ``smet.products.write``."""
    x: Tensor = torch.ops.smet.reorder.default(y, _ticket_among(y, order.ticket), True)
    return x


def _ticket_among(other: Tensor, ticket: Tensor) -> Tensor:
    """``ticket`` as an operand beside ``other``; where that only stands for a tensor, all operands have to."""
    mode = getattr(other, "fake_mode", None) if stands_in(other) else None
    return ticket if mode is None or mode.allow_non_fake_inputs or stands_in(ticket) else mode.from_tensor(ticket)


def begin(hook: Any) -> None:
    """Call ``hook.begin()`` whenever a traced program comes by here."""
    torch.ops.smet.begin.default(hook.clock, hook.ticket)


@torch.library.custom_op("smet::product", mutates_args=(), tags=LOOKING_UP)
def _product(x: Tensor, values: Tensor, ticket: Tensor, inputs: int, outputs: int) -> Tensor:
    layer = holder_of(ticket)
    copies.require_whole(layer)
    return products.forward(layer, x, values).contiguous()


@torch.library.custom_op("smet::input_gradient", mutates_args=(), tags=LOOKING_UP)
def _input_gradient(grad: Tensor, values: Tensor, ticket: Tensor, inputs: int, outputs: int) -> Tensor:
    layer = holder_of(ticket)
    x = grad.new_empty(1).expand(grad.numel() // outputs, inputs)  # the choice looks at nothing but this
    return compute.choose(layer, x).input_gradient(layer, grad, values).contiguous()


@torch.library.custom_op("smet::values_gradient", mutates_args=(), tags=LOOKING_UP)
def _values_gradient(x: Tensor, grad: Tensor, ticket: Tensor, size: int) -> Tensor:
    layer = holder_of(ticket)
    return products.values_gradient(layer, x, grad, compute.choose(layer, x))


@_product.register_fake
def _(x: Tensor, values: Tensor, ticket: Tensor, inputs: int, outputs: int) -> Tensor:
    _require_fit(x, values, inputs)
    return x.new_empty(*x.shape[:-1], outputs)


@_input_gradient.register_fake
def _(grad: Tensor, values: Tensor, ticket: Tensor, inputs: int, outputs: int) -> Tensor:
    _require_fit(grad, values, outputs)
    return grad.new_empty(*grad.shape[:-1], inputs)


@_values_gradient.register_fake
def _(x: Tensor, grad: Tensor, ticket: Tensor, size: int) -> Tensor:
    return x.new_empty(size)


@register_flop_formula([torch.ops.smet.product, torch.ops.smet.input_gradient])
def _flops(x: torch.Size, values: torch.Size, *rest: Any, **options: Any) -> int:
    """What torch's ``FlopCounterMode`` counts: a multiplication and an addition per row and active weight."""
    return 2 * x[:-1].numel() * values.numel()


@register_flop_formula(torch.ops.smet.values_gradient)
def _flops_of_values(x: torch.Size, grad: torch.Size, ticket: torch.Size, size: int, **options: Any) -> int:
    return 2 * x[:-1].numel() * size


def _require_fit(x: Tensor, values: Tensor, features: int) -> None:
    if x.shape[-1] != features or x.dtype != values.dtype or x.device != values.device:
        raise RuntimeError(
            f"expected (..., {features}) of {values.dtype} on {values.device}, got {tuple(x.shape)} of {x.dtype} on "
            f"{x.device}"
        )


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, ticket, ctx.inputs, ctx.outputs = inputs
    wants_x, wants_values = ctx.needs_input_grad[:2]
    ctx.size = values.numel()
    ctx.save_for_backward(x if wants_values else None, values if wants_x else None, ticket)


def _product_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    x, values, ticket = ctx.saved_tensors
    grad_x = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.smet.input_gradient.default(grad, values, ticket, ctx.inputs, ctx.outputs)
    if ctx.needs_input_grad[1]:
        grad_values = torch.ops.smet.values_gradient.default(x, grad, ticket, ctx.size)
    return grad_x, grad_values, None, None, None


_product.register_autograd(_product_gradient, setup_context=_keep_operands)


@torch.library.custom_op("smet::weight", mutates_args=(), tags=LOOKING_UP)
def _weight(values: Tensor, ticket: Tensor, outputs: int, inputs: int) -> Tensor:
    return products.dense(holder_of(ticket), values).contiguous()


@torch.library.custom_op("smet::weight_gradient", mutates_args=(), tags=LOOKING_UP)
def _weight_gradient(grad: Tensor, ticket: Tensor, size: int) -> Tensor:
    layer = holder_of(ticket)
    gradient = products.dense_gradient(layer, grad)
    return gradient.clone() if layer.is_full else gradient  # whose gradient is the weight's


@_weight.register_fake
def _(values: Tensor, ticket: Tensor, outputs: int, inputs: int) -> Tensor:
    return values.new_empty(outputs, inputs)


@_weight_gradient.register_fake
def _(grad: Tensor, ticket: Tensor, size: int) -> Tensor:
    return grad.new_empty(size)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].numel()
    ctx.save_for_backward(inputs[1])


def _gradient_of_weight(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (ticket,) = ctx.saved_tensors
    return torch.ops.smet.weight_gradient.default(grad, ticket, ctx.size), None, None, None


_weight.register_autograd(_gradient_of_weight, setup_context=_keep_size)


@torch.library.custom_op("smet::reorder", mutates_args=(), tags=LOOKING_UP)
def _reorder(x: Tensor, ticket: Tensor, back: bool) -> Tensor:
    return moved(x, holder_of(ticket).on(x.device)[back]).contiguous()


@_reorder.register_fake
def _(x: Tensor, ticket: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _keep_order(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.back = inputs[2]
    ctx.save_for_backward(inputs[1])


def _reorder_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (ticket,) = ctx.saved_tensors
    return torch.ops.smet.reorder.default(grad, ticket, not ctx.back), None, None


_reorder.register_autograd(_reorder_gradient, setup_context=_keep_order)


@torch.library.custom_op("smet::begin", mutates_args=("clock",), tags=LOOKING_UP)
def _begin(clock: Tensor, ticket: Tensor) -> None:
    clock.add_(1)  # what writes nothing and returns nothing is left out of a graph
    holder_of(ticket).begin()


@_begin.register_fake
def _(clock: Tensor, ticket: Tensor) -> None:
    return None
