"""Rows and columns of tiles without any active one: refused where settings leave some, told where masks have some.

An empty row computes nothing and an empty column is read by nobody, so that parts of the layers beside them are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from smet.config import SmetConfig
from smet.distribution import active_tiles
from smet.mask import TileGrid, unpack


class Empty(NamedTuple):
    """Rows and columns of tiles of one layer, or of some of its rows, that have no active tile."""

    rows: int
    columns: Tensor
    """bool ``(columns,)``."""


def empty(bits: Tensor, grid: TileGrid) -> Empty:
    """What of a packed mask of ``grid`` is empty."""
    mask = unpack(bits, grid.tiles).view(grid.shape)
    return Empty(int((~mask.any(1)).sum()), ~mask.any(0).cpu())


def starved(pieces: Iterable[Mapping[str, Empty]]) -> list[str]:
    """A line about layers with empty rows or columns, if there are any.

    Args:
        pieces: by layer; a layer of several pieces, each with other rows, is empty where all of them are.
    """
    rows, columns = dict[str, int](), dict[str, Tensor]()
    for piece in pieces:
        for name, found in piece.items():
            rows[name] = rows.get(name, 0) + found.rows
            columns[name] = found.columns & columns.get(name, found.columns)
    wide = {name: int(found.sum()) for name, found in columns.items()}
    poor = [name for name in rows if rows[name] or wide[name]]
    if not poor:
        return []
    return [
        f"{sum(rows.values()):,} rows and {sum(wide.values()):,} columns of tiles have no active tile, in"
        f" {len(poor)} of {len(rows)} layers (in {poor[0]}: {rows[poor[0]]:,} and {wide[poor[0]]:,}): what they compute"
        " or read is lost; masks that begin with balance 'always' have none, and with 'towards' updates fill them"
    ]


def unbalanced(shapes: Mapping[str, tuple[int, int]], densities: Mapping[str, float], config: SmetConfig) -> list[str]:
    """Why layers cannot be balanced, one sentence each: too few active tiles, or ranges that cut a row of them.

    Args:
        shapes: rows and columns of whole canonical matrices, which ``config.block`` divides.
        densities: of the layers, by name; may name further ones.
    """
    tile, found = config.block, []
    if not config.is_balanced(tile):
        return []
    layers = {name: _Layer(*shape, densities[name]) for name, shape in shapes.items()}
    poor = [name for name, layer in layers.items() if not layer.suffices(tile)]
    if poor:
        height, width = layers[poor[0]].tiles(tile)
        more = f", as have too few {len(poor)} layers in all" if len(poor) > 1 else ""
        largest = _largest(set(layers.values()), tile)
        fits = "no smaller one fits" if largest is None else f"the largest that fits is {list(largest)}"
        found.append(
            f"block is {list(tile)}, expected tiles so small that every row and every column of them has an active one:"
            f" {poor[0]} has {layers[poor[0]].active(tile)} active for {height} x {width}{more}; {fits}; or raise the"
            " density, or set balance 'never'"
        )
    cut = [name for name, layer in layers.items() if layer.tiles(tile)[0] % config.topology_ranges]
    if cut:
        found.append(
            f"topology_ranges is {config.topology_ranges}, expected ranges of whole rows of tiles: {cut[0]} has"
            f" {layers[cut[0]].tiles(tile)[0]}; choose a divisor, or set balance 'never'"
        )
    return found


class _Layer(NamedTuple):
    rows: int
    cols: int
    density: float

    def tiles(self, tile: tuple[int, int]) -> tuple[int, int]:
        return self.rows // tile[0], self.cols // tile[1]

    def active(self, tile: tuple[int, int]) -> int:
        height, width = self.tiles(tile)
        return active_tiles(height * width, self.density)

    def suffices(self, tile: tuple[int, int]) -> bool:
        return self.active(tile) >= max(self.tiles(tile))


def _largest(layers: set[_Layer], tile: tuple[int, int]) -> tuple[int, int] | None:
    """The largest tile within ``tile`` that all layers can have, of equals the most square; None: not even 1 x 1."""
    sides = [[size for size in range(1, side + 1) if side % size == 0] for side in tile]
    fitting = [(r, c) for r in sides[0] for c in sides[1] if all(layer.suffices((r, c)) for layer in layers)]
    return max(fitting, key=lambda found: (found[0] * found[1], min(found)), default=None)
