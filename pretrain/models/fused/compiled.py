"""The steps compiled by torch, which makes one kernel of each; the functions are those of ``plain``, less the norm's.

They are compiled for any number of rows, and again for another dtype. Where that fails, the formula does it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.models.fused import plain

log = logging.getLogger(__name__)
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


class _Compiled:
    """``formula``, compiled when it is first called; as it is from the first time on that this fails."""

    def __init__(self, formula: Callable[..., Any]):
        self.formula = formula
        self.run = torch.compile(formula, fullgraph=True, dynamic=True)

    def __call__(self, *operands: Any) -> Any:
        try:
            return self.run(*(x.detach() if isinstance(x, Tensor) else x for x in operands))
        except Exception as error:
            if self.run is self.formula or not type(error).__module__.startswith(COMPILERS):
                raise  # of the formula itself, such as a lack of memory
            if os.environ.get("LOCAL_RANK", "0") == "0":
                lines = str(error).strip().splitlines() or [type(error).__name__]
                log.warning("%s is not compiled but plain torch, because %s", self.formula.__name__, lines[0])
            self.run = self.formula
            return self.formula(*operands)


@functools.cache
def _compiled(formula: Callable[..., Any]) -> _Compiled:
    return _Compiled(formula)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """See ``plain.gated``."""
    y: Tensor = _compiled(plain.gated)(_rows(gate), _rows(up)).view(gate.shape)
    return y


def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See ``plain.gated_gradient``."""
    back, slope = _compiled(plain.gated_gradient)(_rows(grad), _rows(gate), _rows(up))
    return back.view(gate.shape), slope.view(up.shape)


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """See ``plain.turn``; what is returned lies token by token, as products make it and want it."""
    lines = x.transpose(1, 2).contiguous()
    y: Tensor = _compiled(_turned if direction > 0 else _turned_back)(lines, cos, sin).transpose(1, 2)
    return y


def entropy(logits: Tensor, wanted: Tensor, ignored: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """See ``plain.entropy``."""
    if not gradient:
        losses: Tensor = _compiled(_losses)(logits, wanted, ignored)
        return losses, None
    found: tuple[Tensor, Tensor] = _compiled(_losses_and_gradient)(logits, wanted, ignored)
    return found


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (b, s, heads, d)"""
    half = x.shape[-1] // 2
    cosine, sine = cos[:, None, :half], sin[:, None, :half]
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


def _turned_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _turned(x, cos, -sin)


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
