"""The steps of a transformer that are no products, as autograd functions: its own record costs more than they do.

All give what the plain formulas in their docstrings give, to rounding; ``pretrain.models.fused`` does the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.models import fused

IGNORED = -100
"""Token id of filler rows: predicting it costs nothing."""
SCORES = 1 << 19
"""Scores of attention that are worked on at a time on a CPU: as many as stay in its cache."""
MOST_SCORES = 1 << 22
"""With more for one head of keys, which cannot be split, torch's kernel is left to it."""


class RMSNorm(nn.RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., h) -> (..., h)"""
        if self.eps is None or self.weight is None or len(self.normalized_shape) != 1:
            return super().forward(x)
        if x.is_cuda or fused.steps(x, self.weight) is fused.plain:
            return super().forward(x)  # on GPUs torch has a kernel of its own, faster than what it compiles
        y: Tensor = Normed.apply(x, self.weight, self.eps)
        return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, arXiv 2002.05202). Twice (..., i) -> (..., i)"""
    if gate.shape != up.shape or fused.steps(gate, up) is fused.plain:
        return F.silu(gate) * up
    y: Tensor = Gated.apply(gate, up)
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every feature pair by its position's angle, in fp32. x: (b, heads, s, d); cos, sin: (s, d)."""
    if torch.compiler.is_compiling():
        return fused.plain.turn(x, cos, sin, 1.0)
    turned: Tensor = Rotate.apply(x, cos, sin)
    return turned


class Normed(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps) * weight``; keeps ``x`` itself and one number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(..., h), (h,) -> (..., h)"""
        y, root = fused.steps(x, weight).norm(x, weight, eps)
        ctx.save_for_backward(x, weight, root)
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """(..., h) -> (..., h), (h,)"""
        x, weight, root = ctx.saved_tensors
        back, slope = fused.steps(x, weight, grads[0]).norm_gradient(grads[0], x, weight, root)
        return back, slope, None


class Gated(torch.autograd.Function):
    """``silu(gate) * up``; keeps the two and nothing between them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """(..., i), (..., i) -> (..., i)"""
        ctx.save_for_backward(gate, up)
        y: Tensor = fused.steps(gate, up).gated(gate, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """(..., i) -> (..., i), (..., i)"""
        gate, up = ctx.saved_tensors
        back, slope = fused.steps(gate, up, grads[0]).gated_gradient(grads[0], gate, up)
        return back, slope


class Rotate(torch.autograd.Function):
    """``x * cos + cat(-second half of x, first half of x) * sin`` in fp32; its derivative turns the other way.

    x: (b, heads, s, d); cos, sin: (s, d) in fp32, whose two halves are alike.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(b, heads, s, d) -> (b, heads, s, d)"""
        ctx.save_for_backward(cos, sin)
        y: Tensor = fused.steps(x).turn(x, cos, sin, 1.0)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """(b, heads, s, d) -> (b, heads, s, d)"""
        cos, sin = ctx.saved_tensors
        return fused.steps(grads[0]).turn(grads[0], cos, sin, -1.0), None, None


class MeanCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(logits)[target] over the targets that are not ``IGNORED``, over the number of all targets.

    logits: (b, s, v) in any floating dtype; targets: (b, s). Computes in fp32, a few rows at a time, and the gradient
    along with the loss: beside the logits only their gradient exists, in their own dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """(b, s, v), (b, s) -> scalar in fp32"""
        rows, wanted = logits.flatten(0, -2), targets.flatten()
        losses, grad = fused.steps(rows).entropy(rows, wanted, IGNORED, ctx.needs_input_grad[0])
        if grad is not None:
            ctx.save_for_backward(grad.view_as(logits))
        total: Tensor = losses.sum() / wanted.numel()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Scalar -> (b, s, v)"""
        (grad,) = ctx.saved_tensors
        factor = grads[0]
        if type(factor) is Tensor and factor.is_cpu and factor.item() == 1:  # on a GPU, looking would wait for it
            return grad, None
        return grad * factor, None


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(d) + bias) value; without a bias, causal: the queries are those of the last tokens.
    (b, q, s, d), twice (b, k, s or more, d), (b, 1, s, s) -> (b, q, s, d)"""
    shared, length = query.shape[1] // key.shape[1], query.shape[2]
    version = fused.steps(query, key, value, *([] if bias is None else [bias]))
    if hasattr(version, "attention_slope") and torch.is_grad_enabled() and 0 < shared * length**2 <= MOST_SCORES:
        shape = (query.shape[0], 1, length, length)
        fixed = bias is None or (bias.shape == shape and not bias.requires_grad)
        if fixed and key.shape[2] == length and not torch.is_autocast_enabled(query.device.type):
            mixed: Tensor = Attended.apply(query, key, value, bias)
            return mixed
    return _attention(query, key, value, bias)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    shared, length, seen = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    if bias is None and length in (1, seen):
        return F.scaled_dot_product_attention(query, key, value, is_causal=length == seen, enable_gqa=shared > 1)
    if bias is None:
        bias = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)
    if shared > 1:
        # The memory-efficient kernel takes a bias, but no grouped queries; any other would store all the scores.
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class Attended(torch.autograd.Function):
    """Attention whose backward pass makes the scores again with matrix products, a few heads or sequences at a time.

    torch's own kernel for that on a CPU takes some six times as long in bf16. Nothing but the operands is kept.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """See ``attention``."""
        ctx.save_for_backward(query, key, value, bias)
        return _attention(query, key, value, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """(b, q, s, d) -> (b, q, s, d), twice (b, k, s, d)"""
        query, key, value, bias = ctx.saved_tensors
        batch, heads, length, width = key.shape
        shared = query.shape[1] // heads
        slope = fused.steps(query, grads[0]).attention_slope
        dquery, dkey, dvalue = (  # token by token, as projections want them
            x.new_empty(batch, length, x.shape[1], width).transpose(1, 2) for x in (query, key, value)
        )
        for rows, heads_here, queries in _pieces(batch, heads, shared, max(1, SCORES // (shared * length**2)), bias):
            # Queries that share a head of keys are rows of one matrix: their sums are that head's gradient.
            q, grad = (x[rows, queries].reshape(-1, shared * length, width) for x in (query, grads[0]))
            k, v = (x[rows, heads_here].reshape(-1, length, width) for x in (key, value))
            scores = torch.bmm(q.float(), k.float().transpose(1, 2))
            back = torch.bmm(grad, v.transpose(1, 2))
            p = slope(scores, None if bias is None else bias[rows.start, 0], back, length, width**-0.5)
            many = (rows.stop - rows.start, -1, length, width)
            dvalue[rows, heads_here] = torch.bmm(p.transpose(1, 2), grad).view(many)
            dkey[rows, heads_here] = torch.bmm(back.transpose(1, 2), q).view(many)
            dquery[rows, queries] = torch.bmm(back, k).view(many)
        return dquery, dkey, dvalue, None


def _pieces(
    batch: int, heads: int, shared: int, most: int, bias: Tensor | None
) -> Iterator[tuple[slice, slice, slice]]:
    """Sequences, their heads of keys, and those of queries, in pieces of at most ``most`` heads of keys, or of one.

    Heads of one sequence, or several whole sequences; a bias is of one sequence.
    """
    many = max(1, most // heads) if bias is None else 1
    for first in range(0, batch, many):
        rows = slice(first, min(batch, first + many))
        for low in range(0, heads, most):
            high = min(heads, low + most)
            yield rows, slice(low, high), slice(low * shared, high * shared)
