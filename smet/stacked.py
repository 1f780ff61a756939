"""The dense weights of many sparse layers of one shape, made by one call of a kernel in the place of one for each.

Masks and values that lie back to back are those of one tall matrix, whose rows are the layers' rows one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smet import copies, kernels
from smet.linear import SparseLinear
from smet.mask import TileGrid
from smet.zero import is_partitioned

MOST = 2**31
"""Elements of the tall matrix; kernels may count them in 32 bits."""


def are_alike(layers: Sequence[SparseLinear]) -> bool:
    """Whether ``stacked`` takes ``layers``: whole values, masks of whole bytes, and nothing turned or permuted."""
    if len(layers) < 2:
        return False
    first = layers[0]
    grid, stored = first.grid, first.active * first.grid.tile_size
    if first.is_full or grid.tiles % 8 or len(layers) * grid.rows * grid.cols >= MOST:
        return False
    kind = first.values.dtype, first.values.device, first.values.requires_grad
    return all(
        layer.grid == grid and not layer.transposed and not any(layer.orders)
        and layer.values.numel() == stored and not is_partitioned(layer.values)
        and (layer.values.dtype, layer.values.device, layer.values.requires_grad) == kind
        for layer in layers
    )  # fmt: skip


def stacked(layers: Sequence[SparseLinear]) -> Tensor:
    """Dense weights ``(layers, out, in)``; gradients flow back to the active values."""
    for layer in layers:
        copies.require_whole(layer)
    weights: Tensor = _Stacked.apply(layers, *[layer.values for layer in layers])
    return weights


def _tall(layers: Sequence[SparseLinear]) -> tuple[Tensor, TileGrid]:
    """Mask and tiles of the tall matrix."""
    grid = layers[0].grid
    return torch.cat([layer.packed_mask() for layer in layers]), TileGrid(len(layers) * grid.rows, grid.cols, grid.tile)


class _Stacked(torch.autograd.Function):
    """Active values of all layers to their dense weights, and the weights' gradients to theirs."""

    @staticmethod
    def forward(ctx: Any, layers: Sequence[SparseLinear], *values: Tensor) -> Tensor:
        ctx.layers = layers
        bits, grid = _tall(layers)
        return kernels.expand(bits, torch.cat(values), grid).view(len(layers), -1, grid.cols)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layers: Sequence[SparseLinear] = ctx.layers
        dense = grads[0].contiguous()
        for layer, gradient in zip(layers, dense, strict=True):
            if layer.gradient_sink is not None:
                layer.gradient_sink(layer, gradient)
        bits, grid = _tall(layers)
        active = len(layers) * layers[0].active
        parts = kernels.compress(dense.view(grid.rows, grid.cols), bits, grid, active).chunk(len(layers))
        found = [layer.without_closed(part) for layer, part in zip(layers, parts, strict=True)]
        for layer, part in zip(layers, found, strict=True):
            if layer.values_sink is not None:
                layer.values_sink(layer, part)
        return None, *found
