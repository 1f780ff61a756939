"""Norms, gates, rotations and the loss, forward and backward: as torch does them, and fused; equal, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pretrain.models import fused
from pretrain.models.functions import MeanCrossEntropy, RMSNorm, Rotate, swiglu
from pretrain.models.llama.model import rotary_tables

from ..spread import quartiles, ratios
from .clock import seconds
from .settings import Shapes, Sizes

TOLERANCE = 0.01
"""Relative error of a result in bf16 beside plain torch in fp32."""


@dataclass(frozen=True)
class Step:
    """One function, its operands in fp32, and the gradient of its result."""

    run: Callable[..., Tensor]
    operands: tuple[Tensor, ...]
    upstream: Tensor


def measure(sizes: Sizes) -> dict[str, Any]:
    """Of each step, ratio of times and largest relative error among its result and gradients."""
    found: dict[str, Any] = {}
    for name, step in steps(sizes.shapes, sizes.device):
        exact = both(step, torch.float32, fused.PLAIN)()
        actions = {which: both(step, torch.bfloat16, which) for which in (fused.PLAIN, fused.FUSED)}
        errors = {which: max(map(_error, action(), exact)) for which, action in actions.items()}
        taken = seconds(actions, sizes.rounds, sizes.calls, sizes.device)
        fast = ratios(taken[fused.FUSED], taken[fused.PLAIN])
        found[name] = {
            "ratio": median(fast), "quartiles": list(quartiles(fast)),
            "microseconds": {which: 1e6 * median(times) for which, times in taken.items()},
            "errors": errors, "right": errors[fused.FUSED] <= TOLERANCE,
        }  # fmt: skip
    fused.choose(fused.FUSED)
    return found


def steps(shapes: Shapes, device: str) -> Iterator[tuple[str, Step]]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    stream = (shapes.rows, shapes.length, shapes.heads * shapes.head_dim)
    inner = (shapes.rows, shapes.length, shapes.inner)
    norm = RMSNorm(stream[-1], eps=1e-6, device=device)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    yield "norm", Step(normed, (normal(*stream), 1 + 0.1 * normal(stream[-1])), normal(*stream))
    yield "gate", Step(swiglu, (normal(*inner), normal(*inner)), normal(*inner))
    cos, sin = rotary_tables(shapes.length, shapes.head_dim, 10000.0, torch.device(device))
    heads = (shapes.rows, shapes.length, shapes.heads, shapes.head_dim)
    yield (
        "rotation",
        Step(lambda x: Rotate.apply(x.transpose(1, 2), cos, sin), (normal(*heads),), normal(*heads).transpose(1, 2)),
    )
    logits = (shapes.rows, shapes.length, shapes.vocabulary)
    targets = torch.randint(0, shapes.vocabulary, logits[:2], generator=generator, device=device)
    yield "loss", Step(lambda x: MeanCrossEntropy.apply(x, targets), (normal(*logits),), torch.ones((), device=device))


def both(step: Step, dtype: torch.dtype, which: str) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward in ``dtype``: the result and the gradients of the operands."""
    operands = [x.to(dtype).detach().requires_grad_() for x in step.operands]

    def run() -> tuple[Tensor, ...]:
        fused.choose(which)
        y = step.run(*operands)
        return y.detach(), *torch.autograd.grad(y, operands, step.upstream.to(y.dtype))

    return run


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())
