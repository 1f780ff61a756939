"""Products over active tiles alone: what is not stored is not multiplied, and no dense weight is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from smet.compute.kept import OfMasks
from smet.kernels.lists import Groups, Lists
from smet.mask import TileGrid, unpack

if TYPE_CHECKING:
    from smet.linear import SparseLinear


@dataclass
class Index:
    """Where the active tiles of one mask are, by row and by column of tiles."""

    rows: Lists
    columns: Lists
    groups: dict[int, Groups] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its vectors."""
        vectors = [*self.rows, *self.columns, *(vector for group in self.groups.values() for vector in group)]
        return sum(vector.nbytes for vector in vectors)


SMALLEST = 8
"""Rows or columns of the smallest tile that any kernel takes."""


def index_of(bits: Tensor, grid: TileGrid, active: int) -> tuple[Lists, Lists]:
    """Rows and columns of tiles of a packed mask, made on its device without waiting for it."""
    tall, wide = grid.rows // grid.tile[0], grid.cols // grid.tile[1]
    on = unpack(bits, grid.tiles).view(tall, wide)
    slot = on.view(-1).cumsum(0).view(tall, wide) - 1
    return _lists(on, slot, active), _lists(on.t(), slot.t(), active)


def _lists(on: Tensor, slot: Tensor, active: int) -> Lists:
    flat = on.reshape(-1)
    rank = torch.where(flat, flat.cumsum(0) - 1, active).clamp_(max=active)  # more than are stored: never used
    at = rank.new_zeros(active + 1).scatter_(0, rank, torch.arange(flat.numel(), device=on.device))[:active]
    begin = F.pad(on.sum(1).cumsum(0), (1, 0)).clamp_(max=active)
    slots = slot.reshape(-1)[at].clamp_(0, max(active - 1, 0))
    return Lists(begin.int(), (at % on.shape[1]).int(), slots.int())


class Tiles:
    """Kernels over the active tiles: Triton on GPUs, C++ on CPUs with AVX-512. See ``smet.compute.Compute``."""

    name = "tiles"

    def __init__(self) -> None:
        self._indices = OfMasks(_index)

    def serves(self, layer: SparseLinear, x: Tensor, forced: bool = False) -> bool:
        """Tiles that the device's kernels can multiply; by itself where that is likely faster."""
        tile = layer.grid.tile
        if layer.is_full or min(tile) < SMALLEST or (kernels := _kernels(x)) is None:
            return False
        if not kernels.serves(tile, x.dtype):
            return False
        return forced or kernels.worth_it(tile, layer.density, x.numel() // layer.in_features, x.dtype)

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
        grid, index, spread = layer.grid, self.index(layer), _of(x).spread
        (r, c), (rows, cols) = grid.tile, (grid.rows, grid.cols)
        if by_rows:
            return spread(x, values, index.rows, rows, r, c, along=True)
        return spread(x, values, index.columns, cols, c, r, along=False)

    def values_gradient(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> Tensor:
        """See ``Compute``."""
        flat_x, flat = x.reshape(-1, layer.in_features), grad.reshape(-1, layer.out_features)
        index = self.index(layer)
        a, b = (flat_x, flat) if layer.transposed else (flat, flat_x)
        return _of(x).sample(a, b, index.rows, index.groups, *layer.grid.tile)

    def flops(self, layer: SparseLinear, tokens: int) -> int:
        """See ``Compute``: of the active tiles."""
        return 6 * tokens * layer.active * layer.grid.tile_size

    @torch.no_grad()
    def index(self, layer: SparseLinear) -> Index:
        """Where the tiles of ``layer`` are. Collective where masks are sharded and this one has changed."""
        return self._indices.of(layer)


def _index(layer: SparseLinear, bits: Tensor) -> Index:
    kernels = _kernels(bits)
    of = index_of if kernels is None or not hasattr(kernels, "index") else kernels.index
    return Index(*of(bits, layer.grid, layer.active))


def _kernels(x: Tensor) -> ModuleType | None:
    """The kernels for the device of ``x``, if there are any; on a CPU Triton's run in its interpreter if asked to."""
    from smet import kernels

    interpreted = x.is_cpu and os.environ.get("TRITON_INTERPRET") == "1"
    if x.is_cuda or interpreted:
        if kernels.choose("cuda").kernels is kernels.reference:
            return None
        from smet.kernels import tiles

        return tiles
    if not x.is_cpu:
        return None
    from smet.kernels import tiles_cpu

    return tiles_cpu if tiles_cpu.library() is not None else None


def kernels_on(device: torch.device) -> str:
    """What multiplies tiles on a device, in a few words; empty where nothing does."""
    from smet import kernels

    if device.type == "cuda":
        return kernels.choose("cuda").reason if kernels.choose("cuda").kernels is not kernels.reference else ""
    if device.type != "cpu":
        return ""
    from smet.kernels import tiles_cpu

    return tiles_cpu.instructions()


def _of(x: Tensor) -> ModuleType:
    kernels = _kernels(x)
    assert kernels is not None, "serves() was not asked"
    return kernels
