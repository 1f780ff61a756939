"""Expand, compress and Adam: one small interface, the fastest version for the device behind it.

CPU tensors go to C++ (``cpu``), GPU tensors to Triton (``triton``), all others to plain torch
(``reference``), which is also what remains where the fast version cannot be had. ``SMET_KERNELS``
in the environment forces a choice:

    auto        the default: as above
    native      the same, but an error in place of plain torch
    reference   plain torch everywhere
"""

from __future__ import annotations

import torch
from torch import Tensor

from smet.kernels import checks, reference
from smet.kernels.choice import FAST, Choice, Kernels, choose, describe
from smet.kernels.step import AdamStep
from smet.kernels.watched import watched
from smet.mask import TileGrid

__all__ = ["FAST", "AdamStep", "Choice", "Kernels", "adamw", "choose", "compress", "describe", "expand"]


def expand(bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
    """Scatter active values into a dense matrix ``(rows, cols)``; see ``reference.expand``.

    Raises:
        ConfigError: an argument is no plain tensor; see ``checks.plain``.
    """
    if watched(bits, values):
        from smet.kernels import operators

        return operators.expand(bits, values, grid)
    if values.requires_grad and torch.is_grad_enabled():  # the fast versions leave no trace for autograd
        return reference.expand(bits, values, grid)
    return choose(values.device.type).kernels.expand(bits, values, grid)


def compress(matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
    """Gather the active tiles of ``matrix`` ``(rows, cols)``; see ``reference.compress``.

    Raises:
        ConfigError: an argument is no plain tensor; see ``checks.plain``.
    """
    if watched(bits, matrix):
        from smet.kernels import operators

        return operators.compress(matrix, bits, grid, active)
    if matrix.requires_grad and torch.is_grad_enabled():
        return reference.compress(matrix, bits, grid, active)
    return choose(matrix.device.type).kernels.compress(matrix, bits, grid, active)


def adamw(step: AdamStep) -> None:
    """One AdamW step in place over flat vectors, with per-age step sizes.

    Raises:
        ConfigError, RuntimeError: arguments that do not fit; see ``checks.adamw``.
    """
    checks.adamw(step)
    if watched(step.weight, step.grad):
        from smet.kernels import operators

        operators.adamw(step)
    else:
        choose(step.weight.device.type).kernels.adamw(step)
