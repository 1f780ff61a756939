"""How the density of the model is spread over its layers, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping


def layer_densities(shapes: Mapping[str, tuple[int, int]], density: float, distribution: str) -> dict[str, float]:
    """Density of each layer.

    ``uniform`` gives every layer ``density``. ``erk`` (Erdos-Renyi kernel, Evci et al. 2020,
    arXiv 1911.11134) makes a layer's density proportional to (in + out) / (in * out), scaled so that
    the total number of active weights is the same; layers that would exceed 1 are dense.

    Args:
        shapes: layer name to (out, in).
    """
    if distribution == "uniform" or density == 1.0:
        return dict.fromkeys(shapes, density)
    size = {name: rows * cols for name, (rows, cols) in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        budget = density * sum(size.values()) - sum(size[name] for name in dense)
        scale = budget / sum(raw[name] * size[name] for name in free)
        over = {name for name in free if scale * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= over


def active_tiles(tiles: int, density: float) -> int:
    """Number of active tiles of a layer: the nearest to ``density`` of them, and at least one."""
    return max(1, min(tiles, round(tiles * density)))


def open_tiles(stored: int, tiles: int, first: float, now: float) -> int:
    """Tiles of a range of a layer that are open at density ``now``: of its share of those stored, and at least one.

    A range keeps its share, so that nobody has to know the other ranges: where it is the whole layer,
    ``active_tiles(tiles, now)``.

    Args:
        stored: tiles that the range stores.
        tiles: of the whole layer, over all ranges and tensor-parallel shards.
        first: the layer's density at first, by which tiles were stored.
    """
    share = (2 * active_tiles(tiles, now) * stored + active_tiles(tiles, first)) // (2 * active_tiles(tiles, first))
    return min(stored, max(1, share))


def effective_density(tiles: int, density: float) -> float:
    """The density that decides learning rate and initial scale: what was asked for, or what is really active.

    The two differ where a layer has too few tiles: of 4,096, density 1e-9 leaves one active. Within 1 %, mere
    rounding, it is what was asked for, so that layers of one density share an optimizer group.

    Args:
        tiles: of the whole layer, over all tensor-parallel shards.
    """
    actual = active_tiles(tiles, density) / tiles
    return density if abs(actual - density) <= 0.01 * density else actual


MAX_FACTOR = 32.0
"""No learning rate and no initial weight is scaled by more: density**-0.5 at density 0.001."""


def density_factor(density: float, exponent: float) -> float:
    """``density**-exponent``, at most ``MAX_FACTOR``."""
    return min(MAX_FACTOR, density**-exponent)
