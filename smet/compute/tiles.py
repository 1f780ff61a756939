"""Products over active tiles alone: what is not stored is not multiplied, and no dense weight is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from smet.mask import BlockGrid, unpack

if TYPE_CHECKING:
    from smet.kernels.tiles import Groups, Lists
    from smet.linear import SparseLinear

FEWEST_TOKENS = 512
"""With fewer, the dense product is as fast or faster."""

BREAK_EVEN = {16: 12.6, 32: 3.9, 64: 2.6, 128: 1.8}
"""Time of the three products over that of cuBLAS at density 1, by the smaller side of a tile, and a little: with small
tiles every input is read again for every few outputs. Measured on an H200; see docs/performance-gpu.md."""


@dataclass
class Index:
    """Where the active tiles of one mask are, by row and by column of tiles."""

    mask: Tensor | None
    """The layer's own mask that it was made from; None if others serve it."""
    version: tuple[int | None, int]
    rows: Lists
    columns: Lists
    groups: dict[int, Groups] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its vectors."""
        vectors = [*self.rows, *self.columns, *(vector for group in self.groups.values() for vector in group)]
        return sum(vector.nbytes for vector in vectors)


def index_of(bits: Tensor, grid: BlockGrid, active: int) -> tuple[Lists, Lists]:
    """Rows and columns of tiles of a packed mask, made on its device without waiting for it."""
    tall, wide = grid.rows // grid.block[0], grid.cols // grid.block[1]
    on = unpack(bits, grid.blocks).view(tall, wide)
    slot = on.view(-1).cumsum(0).view(tall, wide) - 1
    return _lists(on, slot, active), _lists(on.t(), slot.t(), active)


def _lists(on: Tensor, slot: Tensor, active: int) -> Lists:
    from smet.kernels.tiles import Lists

    flat = on.reshape(-1)
    rank = torch.where(flat, flat.cumsum(0) - 1, active).clamp_(max=active)  # more than are stored: never used
    at = rank.new_zeros(active + 1).scatter_(0, rank, torch.arange(flat.numel(), device=on.device))[:active]
    begin = F.pad(on.sum(1).cumsum(0), (1, 0)).clamp_(max=active)
    slots = slot.reshape(-1)[at].clamp_(0, max(active - 1, 0))
    return Lists(begin.int(), (at % on.shape[1]).int(), slots.int())


class Tiles:
    """Triton kernels over the active tiles, on GPUs. See ``smet.compute.Compute``."""

    name = "tiles"

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[SparseLinear, Index] = WeakKeyDictionary()

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Tiles whose sides are powers of two; by itself where they are large enough to be faster."""
        grid = layer.grid
        if layer.is_full or min(grid.block) < 16 or not _available(x):
            return False
        from smet.kernels.tiles import DTYPES, SIDES

        if x.dtype not in DTYPES or any(side not in SIDES for side in grid.block):
            return False
        return forced or (x.numel() // layer.in_features >= FEWEST_TOKENS and worth_it(layer))

    def forward(self, layer: SparseLinear, x: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        y = self._spread(layer, x.reshape(-1, layer.in_features), values, by_rows=not layer.transposed)
        return y.view(*x.shape[:-1], layer.out_features)

    def input_gradient(self, layer: SparseLinear, grad: Tensor, values: Tensor) -> Tensor:
        """See ``Compute``."""
        x = self._spread(layer, grad.reshape(-1, layer.out_features), values, by_rows=layer.transposed)
        return x.view(*grad.shape[:-1], layer.in_features)

    def _spread(self, layer: SparseLinear, x: Tensor, values: Tensor, by_rows: bool) -> Tensor:
        """The canonical matrix times ``x``, or its transpose."""
        from smet.kernels.tiles import spread

        grid, index = layer.grid, self.index(layer)
        (r, c), (rows, cols) = grid.block, (grid.rows, grid.cols)
        if by_rows:
            return spread(x, values, index.rows, rows, r, c, along=True)
        return spread(x, values, index.columns, cols, c, r, along=False)

    def values_gradient(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> Tensor:
        """See ``Compute``."""
        from smet.kernels.tiles import sample

        flat_x, flat = x.reshape(-1, layer.in_features), grad.reshape(-1, layer.out_features)
        index = self.index(layer)
        a, b = (flat_x, flat) if layer.transposed else (flat, flat_x)
        return sample(a, b, index.rows, index.groups, *layer.grid.block)

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        """See ``Compute``: of the active tiles."""
        return 6 * tokens * layer.active * layer.grid.block_size

    @torch.no_grad()
    def index(self, layer: SparseLinear) -> Index:
        """Where the tiles of ``layer`` are. Collective where masks are sharded and this one has changed."""
        known, mask = self._indices.get(layer), layer.mask
        version = (None if mask is None else mask._version, layer.masks_written)
        if known is None or known.mask is not mask or known.version != version:
            known = Index(mask, version, *index_of(layer.packed_mask(), layer.grid, layer.active))
            self._indices[layer] = known
        return known


def worth_it(layer: SparseLinear) -> bool:
    """Whether tiles of this size and density are faster than cuBLAS on the whole matrix."""
    return layer.density * BREAK_EVEN[min(layer.grid.block)] < 1


def _available(x: Tensor) -> bool:
    """Whether Triton kernels run on the device of ``x``; on a CPU they do in its interpreter."""
    if not x.is_cuda and not (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    from smet import kernels

    return kernels.choose("cuda").kernels is not kernels.reference
