"""Expand, compress and Adam as operators of torch, for those who look on; see ``watched``.

The gradient of each of the first two is the other. Here the mask is an operand, which autograd keeps: who has a
layer takes the layer's operators (``smet.operators``), which ask for it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smet.kernels import checks
from smet.kernels.choice import choose
from smet.kernels.step import AdamStep
from smet.mask import TileGrid


def expand(bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
    """See ``smet.kernels.expand``.

    Raises:
        ConfigError: an argument is neither a plain tensor nor one that stands for such a one.
    """
    checks.traceable("mask", bits)
    checks.traceable("values", values)
    matrix: Tensor = torch.ops.smet.expand.default(bits, values, grid.rows, grid.cols, *grid.tile)
    return matrix


def compress(matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
    """See ``smet.kernels.compress``.

    Raises:
        ConfigError: see ``expand``.
    """
    checks.traceable("mask", bits)
    checks.traceable("dense gradient", matrix)
    values: Tensor = torch.ops.smet.compress.default(matrix, bits, grid.rows, grid.cols, *grid.tile, active)
    return values


def adamw(step: AdamStep) -> None:
    """See ``smet.kernels.adamw``."""
    torch.ops.smet.adamw.default(
        step.weight, step.grad, step.exp_avg, step.exp_avg_sq, step.birth, step.step_size, step.correction,
        step.beta1, step.beta2, step.eps, step.decay,
    )  # fmt: skip


@torch.library.custom_op("smet::expand", mutates_args=())
def _expand(bits: Tensor, values: Tensor, rows: int, cols: int, tall: int, wide: int) -> Tensor:
    return choose(values.device.type).kernels.expand(bits, values, TileGrid(rows, cols, (tall, wide)))


@torch.library.custom_op("smet::compress", mutates_args=())
def _compress(matrix: Tensor, bits: Tensor, rows: int, cols: int, tall: int, wide: int, active: int) -> Tensor:
    return choose(matrix.device.type).kernels.compress(matrix, bits, TileGrid(rows, cols, (tall, wide)), active)


@_expand.register_fake
def _(bits: Tensor, values: Tensor, rows: int, cols: int, tall: int, wide: int) -> Tensor:
    if values.numel() % (tall * wide):
        raise RuntimeError(f"{values.numel()} values do not fill tiles of {tall * wide}")
    return values.new_empty(rows, cols)


@_compress.register_fake
def _(matrix: Tensor, bits: Tensor, rows: int, cols: int, tall: int, wide: int, active: int) -> Tensor:
    if matrix.numel() != rows * cols:
        raise RuntimeError(f"{matrix.numel()} dense weights are not {rows} x {cols}")
    return matrix.new_empty(active * tall * wide)


def _keep_for_expand(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, values, *ctx.grid = inputs
    ctx.active = values.numel() // (ctx.grid[2] * ctx.grid[3])
    ctx.save_for_backward(bits)


def _gradient_of_expand(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None, None]:
    (bits,) = ctx.saved_tensors
    return None, torch.ops.smet.compress.default(grad, bits, *ctx.grid, ctx.active), None, None, None, None


def _keep_for_compress(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bits, *ctx.grid, _ = inputs
    ctx.save_for_backward(bits)


def _gradient_of_compress(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
    (bits,) = ctx.saved_tensors
    return torch.ops.smet.expand.default(bits, grad, *ctx.grid), None, None, None, None, None, None


_expand.register_autograd(_gradient_of_expand, setup_context=_keep_for_expand)
_compress.register_autograd(_gradient_of_compress, setup_context=_keep_for_compress)


@torch.library.custom_op("smet::adamw", mutates_args=("weight", "exp_avg", "exp_avg_sq"))
def _adamw(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, birth: Tensor | None, step_size: Tensor,
    correction: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    step = AdamStep(weight, grad, exp_avg, exp_avg_sq, birth, step_size, correction, beta1, beta2, eps, decay)
    choose(weight.device.type).kernels.adamw(step)


@_adamw.register_fake
def _(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, birth: Tensor | None, step_size: Tensor,
    correction: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    return None
