"""Two steps of a transformer as autograd functions, because autograd's own record of them costs more than they do.

Both give what the plain formulas in their docstrings give, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Token id of filler rows: predicting it costs nothing."""
CHUNK = {"cpu": 1 << 20}
"""Logits worked on at a time: on a CPU as many as stay in its cache ..."""
LARGE_CHUNK = 1 << 24
"""... and elsewhere as many as keep the device busy."""


class MeanCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(logits)[target] over the targets that are not ``IGNORED``, over the number of all targets.

    logits: (b, s, v) in any floating dtype; targets: (b, s). Computes in fp32, a few rows at a time, and the gradient
    along with the loss: beside the logits only their gradient exists, in their own dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """(b, s, v), (b, s) -> scalar in fp32"""
        rows, wanted = logits.flatten(0, -2), targets.flatten()
        keep = (wanted != IGNORED).unsqueeze(1)
        place = wanted.masked_fill(~keep.squeeze(1), 0).unsqueeze(1)
        grad = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        size = max(1, CHUNK.get(logits.device.type, LARGE_CHUNK) // rows.shape[1])
        for lo in range(0, rows.shape[0], size):
            here = slice(lo, lo + size)
            logs = torch.log_softmax(rows[here].float(), dim=-1)
            total -= (logs.gather(1, place[here]) * keep[here]).sum()
            if grad is not None:
                share = keep[here] / wanted.numel()
                slope = logs.exp_().mul_(share)
                slope.scatter_add_(1, place[here], -share)
                grad[here] = slope
        if grad is not None:
            ctx.save_for_backward(grad.view_as(logits))
        return total / wanted.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Scalar -> (b, s, v)"""
        (grad,) = ctx.saved_tensors
        if grads[0].device.type == "cpu" and grads[0].item() == 1:  # on a GPU, looking would wait for it
            return grad, None
        return grad * grads[0], None


class Rotate(torch.autograd.Function):
    """``x * cos + cat(-second half of x, first half of x) * sin`` in fp32; its derivative turns the other way.

    x: (b, heads, s, d); cos, sin: (s, d), whose two halves are alike.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(b, heads, s, d) -> (b, heads, s, d)"""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """(b, heads, s, d) -> (b, heads, s, d)"""
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.empty_like(x)
    turned[..., :half] = (first * cos).addcmul_(second, sin, value=-direction)
    turned[..., half:] = (second * cos).addcmul_(first, sin, value=direction)
    return turned
