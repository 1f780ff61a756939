"""AdamW whose moments take one byte each: 2 bytes of state per weight in the place of 8.

The update is AdamW's (``smet.optim.adamw``), computed in fp32 on moments that are read from bytes and written back:

- the second moment as its exponent and two bits of its mantissa, from 4e-18 (the square of 2e-9, where
  ``eps`` rules) to 56, beyond which it is kept as 56;
- the first moment in 64ths of the second's root. By Cauchy and Schwarz no first moment is larger than
  ``reach(betas)`` roots, whatever the gradients were, so that 127 of them are enough for all averages allowed here.

Each weight stands for itself, so that vectors may be cut anywhere and a regrown weight begins with 0; 8-bit Adam of
Dettmers et al. (2022, arXiv 2110.02861) shares a scale among the weights of a block. Rounding is stochastic, since an
average that is rounded to the nearest stands still where a step moves it by less than half a code. What it is rounded
by is a hash of the weight, its gradient and the step: the same wherever vectors are cut and after a resume, without a
generator. Layouts that sum gradients in another order round otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smet.optim.adamw import AdamWFormula
from smet.optim.ages import Betas
from smet.optim.formula import CHUNK, State, Values

DROPPED = 21
"""Bits of an fp32 mantissa that a code of the second moment leaves out."""
SMALLEST = (127 - 58) << (23 - DROPPED)
"""What is left of the bits of the smallest second moment; one code above it is the smallest that is not 0."""
PER_ROOT = 64
"""Codes of the first moment per root of the second."""
FARTHEST = 127 / PER_ROOT - 0.2
"""Roots that codes reach, without what a second moment may lose when it is rounded down."""
CACHED = 1 << 16
"""Weights of a piece on a CPU."""


class AdamW8bit(AdamWFormula):
    """See above."""

    name = "adamw_8bit"
    state = (State("exp_avg", torch.int8), State("exp_avg_sq", torch.uint8))
    defaults = {"betas": (0.9, 0.95), "eps": 1e-8}

    def problems(self, options: Mapping[str, Any]) -> list[str]:
        """See ``Formula``: a slower second average is more noise of rounding than average."""
        if found := super().problems(options):
            return found
        if reach(options["betas"]) <= FARTHEST:
            return []
        return [f"betas are {tuple(options['betas'])}, expected a faster second average for 8 bits, such as 0.9, 0.95"]

    def update(self, values: Values) -> None:
        """See ``Formula``. Pieces are such that a processor's cache holds what is made of them."""
        for part in values.parts(CACHED if values.weight.device.type == "cpu" else CHUNK):
            self._update(part)

    def _update(self, values: Values) -> None:
        kept, weight = values.state, values.weight
        dither = hashed(weight, values.grad, values.step)
        second = read_second(kept["exp_avg_sq"]).to(weight.dtype)
        first = read_first(kept["exp_avg"], second)
        super().update(replace(values, state={"exp_avg": first, "exp_avg_sq": second}))
        kept["exp_avg_sq"].copy_(written_second(second, dither))
        kept["exp_avg"].copy_(written_first(first, read_second(kept["exp_avg_sq"]), mixed(dither)))


def reach(betas: Betas) -> float:
    """The largest ratio of the first moment to the root of the second; infinite where there is none."""
    beta1, beta2 = betas
    if beta1**2 >= beta2:
        return math.inf
    return (1 - beta1) / math.sqrt((1 - beta1**2 / beta2) * (1 - beta2))


def hashed(weight: Tensor, grad: Tensor, step: int) -> Tensor:
    """Numbers as if by chance, int32 ``(n,)``, of a weight, its gradient and the step."""
    bits = weight.float().view(torch.int32) * 0x2545F491
    bits += grad.float().view(torch.int32) * 0x1B873593
    bits += step * 0x9E3779B1 & 0x7FFFFFFF
    return mixed(bits)


def mixed(bits: Tensor) -> Tensor:
    """``bits``, of which each has become one that depends on all, in place."""
    for shift, factor in ((15, 0x2C1B3C6D), (13, 0x297A2D39)):
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> 16
    return bits


def read_second(codes: Tensor) -> Tensor:
    """Second moments ``(n,)``, fp32, of uint8 codes; code 0 is 0."""
    bits = codes.int().add_(SMALLEST).bitwise_left_shift_(DROPPED)
    return bits.view(torch.float32).mul_(codes != 0)


def written_second(second: Tensor, dither: Tensor) -> Tensor:
    """The codes between which a second moment lies, the nearer of them the more often; int32."""
    bits = second.float().view(torch.int32) + (dither & ((1 << DROPPED) - 1))
    return bits.bitwise_right_shift_(DROPPED).sub_(SMALLEST).clamp_(0, 255)


def read_first(codes: Tensor, second: Tensor) -> Tensor:
    """First moments ``(n,)``, in the dtype of the second ones that were read, of int8 codes."""
    return second.sqrt().mul_(codes).div_(PER_ROOT)


def written_first(first: Tensor, second: Tensor, dither: Tensor) -> Tensor:
    """The codes of first moments beside second ones as they will be read; fp32 whole numbers."""
    by_chance = (dither & 0xFFFF).float().div_(1 << 16)
    codes = (first.float() / second.sqrt()).mul_(PER_ROOT).add_(by_chance).floor_().clamp_(-127, 127)
    return codes.nan_to_num_(0.0, 0.0, 0.0).mul_(second != 0)
