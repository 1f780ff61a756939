"""The steps compiled by torch, which makes one kernel of each; the functions are those of ``plain``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.models.fused import plain


@functools.cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(formula, fullgraph=True, dynamic=True)


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``plain.norm``."""
    found: tuple[Tensor, Tensor] = _compiled(plain.norm)(x, weight, eps)
    return found


def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """See ``plain.norm_gradient``."""
    found: tuple[Tensor, Tensor] = _compiled(plain.norm_gradient)(grad, x, weight, root)
    return found


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """See ``plain.gated``."""
    found: Tensor = _compiled(plain.gated)(gate, up)
    return found


def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See ``plain.gated_gradient``."""
    found: tuple[Tensor, Tensor] = _compiled(plain.gated_gradient)(grad, gate, up)
    return found


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """See ``plain.turn``; what is returned lies as ``x`` does."""
    found: Tensor = _compiled(_turned)(x.transpose(1, 2), cos, sin if direction > 0 else -sin).transpose(1, 2)
    return found


def entropy(logits: Tensor, wanted: Tensor, ignored: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """See ``plain.entropy``."""
    if not gradient:
        losses: Tensor = _compiled(_losses)(logits, wanted, ignored)
        return losses, None
    found: tuple[Tensor, Tensor] = _compiled(_losses_and_gradient)(logits, wanted, ignored)
    return found


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (b, s, heads, d)"""
    half = x.shape[-1] // 2
    cosine, sine = cos[:, None, :half], sin[:, None, :half]
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


def _losses(logits: Tensor, wanted: Tensor, ignored: int) -> Tensor:
    return _parts(logits, wanted, ignored)[0]


def _losses_and_gradient(logits: Tensor, wanted: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    losses, keep, logs = _parts(logits, wanted, ignored)
    hit = torch.arange(logits.shape[1], device=logits.device) == wanted.unsqueeze(1)
    slope = (logs.exp() - hit.float()) * (keep.unsqueeze(1) / wanted.numel())
    return losses, slope.to(logits.dtype)


def _parts(logits: Tensor, wanted: Tensor, ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    keep = wanted != ignored
    logs = torch.log_softmax(logits.float(), dim=-1)
    place = torch.where(keep, wanted, 0).unsqueeze(1)
    return torch.where(keep, -logs.gather(1, place).squeeze(1), 0.0), keep, logs
