"""How the density of the model is spread over its layers."""

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
