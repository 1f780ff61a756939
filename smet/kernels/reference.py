"""The kernels in plain torch: what every faster version must equal."""

from __future__ import annotations

from torch import Tensor

from smet.kernels.step import AdamStep
from smet.mask import TileGrid, unpack

CHUNK = 1 << 20
"""Elements that ``adamw`` updates at a time, so that temporaries stay small beside the state."""


def expand(bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
    """Scatter active values into a dense matrix.

    Args:
        bits: packed mask, uint8 ``(ceil(tiles / 8),)``.
        values: active weights, tile by tile, ``(active * tile_size,)``.
        grid: the tiling of the canonical matrix.

    Returns:
        The canonical matrix ``(rows, cols)`` in the dtype of ``values``; inactive weights are 0.
    """
    tiles = values.new_zeros(grid.tiles, grid.tile_size)
    tiles[unpack(bits, grid.tiles)] = values.view(-1, grid.tile_size)
    return grid.from_tiles(tiles)


def compress(matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
    """Gather the active tiles of a canonical matrix ``(rows, cols)`` into ``(active * tile_size,)``."""
    tiles = grid.to_tiles(matrix)[unpack(bits, grid.tiles)]
    if tiles.shape[0] != active:
        raise RuntimeError(f"mask holds {tiles.shape[0]} active tiles, the layer {active}")
    return tiles.view(-1)


def adamw(step: AdamStep) -> None:
    """One AdamW step in place."""
    for lo in range(0, step.weight.numel(), CHUNK):
        _adamw_chunk(step.part(slice(lo, lo + CHUNK)))


def _adamw_chunk(s: AdamStep) -> None:
    s.exp_avg.lerp_(s.grad, 1 - s.beta1)
    s.exp_avg_sq.mul_(s.beta2).addcmul_(s.grad, s.grad, value=1 - s.beta2)
    if s.decay:
        s.weight.mul_(1 - s.decay)
    denominator = s.exp_avg_sq.sqrt()
    if s.birth is None:
        denominator.div_(s.correction[0]).add_(s.eps)
        s.weight.addcdiv_(s.exp_avg * -s.step_size[0], denominator)
        return
    codes = s.birth.int()
    denominator.div_(s.correction.index_select(0, codes)).add_(s.eps)
    s.weight.sub_(s.step_size.index_select(0, codes).mul_(s.exp_avg).div_(denominator))
