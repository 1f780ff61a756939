"""Packed masks of tiles: one bit per tile, eight tiles a byte, lowest bit first.

A mask describes a *canonical matrix* of ``rows x cols`` cut into tiles of ``r x c`` (``tile``);
bit ``i`` belongs to the i-th tile in row-major order. Tiles of 1 x 1 are plain unstructured
sparsity. ``values`` of a layer are stored tile by tile in the order of the set bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smet.errors import ConfigError

_BIT: dict[tuple[torch.device, bool], Tensor] = {}


@dataclass(frozen=True)
class TileGrid:
    """The tiling of one canonical matrix."""

    rows: int
    cols: int
    tile: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        r, c = self.tile
        if self.rows % r or self.cols % c:
            raise ConfigError(
                f"block is {r} x {c}, which does not divide a {self.rows} x {self.cols} canonical matrix; "
                "choose a tile whose sides divide it (transposed layers have rows = inputs)"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a grid that was pickled while its tile was called block."""
        vars(self).update({"tile" if name == "block" else name: value for name, value in state.items()})

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return (self.rows // self.tile[0]) * (self.cols // self.tile[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.rows // self.tile[0], self.cols // self.tile[1]

    @property
    def tile_size(self) -> int:
        """Weights in one tile."""
        return self.tile[0] * self.tile[1]

    @property
    def mask_bytes(self) -> int:
        """Bytes of the packed mask."""
        return packed_bytes(self.tiles)

    def to_tiles(self, matrix: Tensor) -> Tensor:
        """View a ``(rows, cols)`` matrix as ``(tiles, tile_size)``, copying only if tiles are tall."""
        r, c = self.tile
        if r == 1:
            return matrix.reshape(self.tiles, c)
        tiles = matrix.reshape(self.rows // r, r, self.cols // c, c)
        return tiles.permute(0, 2, 1, 3).reshape(self.tiles, self.tile_size)

    def from_tiles(self, tiles: Tensor) -> Tensor:
        """Inverse of ``to_tiles``: ``(tiles, tile_size)`` to ``(rows, cols)``."""
        r, c = self.tile
        if r == 1:
            return tiles.reshape(self.rows, self.cols)
        tiles = tiles.reshape(self.rows // r, self.cols // c, r, c)
        return tiles.permute(0, 2, 1, 3).reshape(self.rows, self.cols)


BlockGrid = TileGrid
"""Its former name, under which layers were pickled."""


@dataclass(frozen=True)
class MaskPart:
    """What one rank keeps of a packed mask that ranks share out."""

    first: int
    """Its first byte."""
    rank: int
    ranks: int
    """The place of that rank, of how many."""
    own: Tensor
    """uint8, possibly none."""


def packed_bytes(count: int) -> int:
    """Bytes that hold ``count`` bits."""
    return (count + 7) // 8


def _weights(device: torch.device, shift: bool) -> Tensor:
    key = (device, shift)
    if key not in _BIT:
        powers = torch.arange(8, dtype=torch.uint8, device=device)
        _BIT[key] = powers if shift else (torch.ones_like(powers) << powers)
    return _BIT[key]


def pack(active: Tensor) -> Tensor:
    """Pack a bool vector ``(count,)`` into uint8 ``(ceil(count / 8),)``; spare bits are 0."""
    padded = active.new_zeros(packed_bytes(active.numel()) * 8, dtype=torch.uint8)
    padded[: active.numel()] = active
    return (padded.view(-1, 8) * _weights(active.device, shift=False)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, count: int) -> Tensor:
    """Unpack uint8 ``(ceil(count / 8),)`` into a bool vector ``(count,)``."""
    spread = (bits.unsqueeze(1) >> _weights(bits.device, shift=True)) & 1
    return spread.view(-1)[:count].bool()


def count_active(bits: Tensor) -> int:
    """Number of set bits."""
    return int(unpack(bits, bits.numel() * 8).sum())


def has_spare_bits(bits: Tensor, count: int) -> bool:
    """Whether any bit of the last byte of a packed mask of ``count`` bits is set that stands for none of them."""
    used = count % 8
    return bool(used and bits.numel() and int(bits[-1]) >> used)


def digest(bits: Tensor) -> str:
    """A 128-bit hex digest of a packed mask, equal on every device and rank."""
    return hashlib.blake2b(bits.cpu().numpy().tobytes(), digest_size=16).hexdigest()


def combined_digest(digests: dict[str, str]) -> str:
    """One digest of many layers' digests, independent of the order they were computed in."""
    text = "\n".join(f"{name} {value}" for name, value in sorted(digests.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
