"""The steps as formulas of torch, which run anywhere. Each computes in fp32 and returns what it was given, or fp64."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 20}
"""Logits worked on at a time: on a CPU as many as stay in its cache ..."""
LARGE_CHUNK = 1 << 24
"""... and elsewhere as many as keep the device busy."""


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / root mean square of x * weight``, ``(..., h)``, and one over the root, ``(..., 1)``."""
    wide = _wide(x)
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * root * weight).to(x.dtype), root


def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and, in its own dtype, of ``weight``."""
    unit, slope = _wide(x) * root, _wide(grad)
    own = slope * weight
    back = (own - unit * (own * unit).mean(-1, keepdim=True)) * root
    return back.to(x.dtype), (slope * unit).flatten(0, -2).sum(0).to(weight.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``gate * sigmoid(gate) * up``."""
    wide = _wide(gate)
    return (wide * torch.sigmoid(wide) * up).to(gate.dtype)


def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``up``."""
    slope, wide = _wide(grad), _wide(gate)
    share = torch.sigmoid(wide)
    back = slope * up * (share * (1 + wide * (1 - share)))
    return back.to(gate.dtype), (slope * (wide * share)).to(up.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """The pairs (first half of a row, second half of it) turned by their angles. x: (b, heads, s, d); cos, sin: (s, d),
    whose two halves are alike; direction: 1.0, or -1.0 to turn back."""
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.empty_like(x)
    turned[..., :half] = (first * cos).addcmul_(second, sin, value=-direction)
    turned[..., half:] = (second * cos).addcmul_(first, sin, value=direction)
    return turned


def entropy(logits: Tensor, wanted: Tensor, ignored: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """-log softmax(row)[wanted] of each row in fp32, 0 where that is ``ignored``; and, if asked for, the gradient of
    the mean of them all. logits: (rows, v); wanted: (rows,)."""
    keep = (wanted != ignored).unsqueeze(1)
    place = wanted.masked_fill(~keep.squeeze(1), 0).unsqueeze(1)
    losses = torch.empty(wanted.shape, dtype=torch.float32, device=logits.device)
    grad = torch.empty_like(logits) if gradient else None
    size = max(1, CHUNK.get(logits.device.type, LARGE_CHUNK) // max(1, logits.shape[1]))
    for lo in range(0, logits.shape[0], size):
        here = slice(lo, lo + size)
        logs = torch.log_softmax(logits[here].float(), dim=-1)
        losses[here] = -(logs.gather(1, place[here]) * keep[here]).squeeze(1)
        if grad is not None:
            share = keep[here] / wanted.numel()
            slope = logs.exp_().mul_(share)
            slope.scatter_add_(1, place[here], -share)
            grad[here] = slope
    return losses, grad


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
