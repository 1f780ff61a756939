"""The kernels in plain torch: what every faster version must equal."""

from __future__ import annotations

from torch import Tensor

from smet.mask import BlockGrid, unpack

CHUNK = 1 << 20
"""Elements that ``adamw`` updates at a time, so that temporaries stay small beside the state."""


def expand(bits: Tensor, values: Tensor, grid: BlockGrid) -> Tensor:
    """Scatter active values into a dense matrix.

    Args:
        bits: packed mask, uint8 ``(ceil(blocks / 8),)``.
        values: active weights, tile by tile, ``(active * block_size,)``.
        grid: the tiling of the canonical matrix.

    Returns:
        The canonical matrix ``(rows, cols)`` in the dtype of ``values``; inactive weights are 0.
    """
    tiles = values.new_zeros(grid.blocks, grid.block_size)
    tiles[unpack(bits, grid.blocks)] = values.view(-1, grid.block_size)
    return grid.from_blocks(tiles)


def compress(matrix: Tensor, bits: Tensor, grid: BlockGrid, active: int) -> Tensor:
    """Gather the active tiles of a canonical matrix ``(rows, cols)`` into ``(active * block_size,)``."""
    tiles = grid.to_blocks(matrix)[unpack(bits, grid.blocks)]
    if tiles.shape[0] != active:
        raise RuntimeError(f"mask holds {tiles.shape[0]} active blocks, the layer {active}")
    return tiles.view(-1)


def adamw(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    birth: Tensor | None,
    step_size: Tensor,
    correction: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """One AdamW step in place over flat vectors, with per-age step sizes.

    For element i with birth code c: ``w -= step_size[c] * m / (sqrt(v) / correction[c] + eps) + decay * w``.

    Args:
        weight, exp_avg, exp_avg_sq: ``(n,)`` in the master dtype.
        grad: ``(n,)`` in any floating dtype.
        birth: uint8 codes ``(n,)``, or None where every element has code 0.
        step_size: ``lr * r / (1 - beta1**age)`` per code, ``(codes,)``.
        correction: ``sqrt(1 - beta2**age)`` per code, ``(codes,)``.
        decay: learning rate times weight decay.
    """
    for lo in range(0, weight.numel(), CHUNK):
        here = slice(lo, lo + CHUNK)
        codes = None if birth is None else birth[here]
        _adamw_chunk(
            weight[here], grad[here].to(weight.dtype), exp_avg[here], exp_avg_sq[here], codes,
            step_size, correction, beta1, beta2, eps, decay,
        )  # fmt: skip


def _adamw_chunk(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, birth: Tensor | None,
    step_size: Tensor, correction: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if decay:
        weight.mul_(1 - decay)
    denominator = exp_avg_sq.sqrt()
    if birth is None:
        denominator.div_(correction[0]).add_(eps)
        weight.addcdiv_(exp_avg * -step_size[0], denominator)
        return
    codes = birth.int()
    denominator.div_(correction.index_select(0, codes)).add_(eps)
    weight.sub_(step_size.index_select(0, codes).mul_(exp_avg).div_(denominator))
