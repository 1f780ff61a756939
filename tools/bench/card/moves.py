"""Expand, compress and Adam: equal to plain torch, and how near to the bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from smet import kernels
from smet.kernels import reference
from smet.mask import TileGrid, count_active, pack

from ..spread import quartiles
from .clock import seconds
from .settings import Sizes

BLOCKS = ((1, 1), (1, 16), (32, 32))
DENSITY = 0.25


def measure(sizes: Sizes) -> dict[str, Any]:
    """Bandwidths of each kernel beside that of a copy, the faster of two kinds, and whether its results are right."""
    copied = torch.rand(sizes.elements * 4, device=sizes.device)
    target = torch.empty_like(copied)
    actions: dict[str, tuple[Callable[[], Any], int]] = {
        "copy": (lambda: target.copy_(copied), 2 * copied.nbytes),
        "copy by a kernel": (lambda: torch.neg(copied, out=target), 2 * copied.nbytes),
    }
    right: dict[str, bool] = {}
    for block in BLOCKS:
        _moves(sizes, block, actions, right)
    _adam(sizes, actions, right)
    taken = seconds({name: action for name, (action, _) in actions.items()}, sizes.rounds, sizes.calls, sizes.device)
    copies = [name for name in actions if name.startswith("copy")]
    copy = max(actions[name][1] / median(taken[name]) for name in copies)
    return {
        "copy_bytes_per_second": copy,
        "kernels": {
            name: {
                "fraction": actions[name][1] / median(times) / copy,
                "quartiles": [actions[name][1] / time / copy for time in reversed(quartiles(times))],
                "microseconds": 1e6 * median(times),
                "right": right[name],
            }
            for name, times in taken.items()
            if name not in copies
        },
    }


def _moves(sizes: Sizes, block: tuple[int, int], actions: dict[str, Any], right: dict[str, bool]) -> None:
    grid = TileGrid(*sizes.matrix, block if sizes.matrix[0] % block[0] == sizes.matrix[1] % block[1] == 0 else (1, 1))
    bits = pack(torch.rand(grid.tiles, device=sizes.device) < DENSITY)
    active = count_active(bits)
    values = torch.randn(active * grid.tile_size, device=sizes.device).bfloat16()
    dense = torch.randn(sizes.matrix, device=sizes.device).bfloat16()
    moved = 2 * (dense.numel() + values.numel()) + bits.numel()
    name = f"{block[0]} x {block[1]}"
    actions[f"expand, {name}"] = (lambda: kernels.expand(bits, values, grid), moved)
    actions[f"compress, {name}"] = (lambda: kernels.compress(dense, bits, grid, active), moved)
    right[f"expand, {name}"] = torch.equal(kernels.expand(bits, values, grid), reference.expand(bits, values, grid))
    right[f"compress, {name}"] = torch.equal(
        kernels.compress(dense, bits, grid, active), reference.compress(dense, bits, grid, active)
    )


def _adam(sizes: Sizes, actions: dict[str, Any], right: dict[str, bool]) -> None:
    state = [torch.rand(sizes.elements, device=sizes.device) for _ in range(4)]
    births = torch.randint(0, 20, (sizes.elements,), dtype=torch.uint8, device=sizes.device)
    factors = torch.full((256,), 1e-3, device=sizes.device), torch.ones(256, device=sizes.device)
    few: list[Tensor] = [vector[: 1 << 20] for vector in state]
    own, plain = ([vector.clone() for vector in few] for _ in range(2))
    _step(kernels.adamw, own, births[: 1 << 20], factors)
    _step(reference.adamw, plain, births[: 1 << 20], factors)
    right["Adam"] = all(torch.allclose(a, b, rtol=2e-6, atol=2e-7) for a, b in zip(own, plain, strict=True))
    actions["Adam"] = (lambda: _step(kernels.adamw, state, births, factors), sizes.elements * (4 * 7 + 1))


def _step(adamw: Callable[..., None], state: list[Tensor], births: Tensor, factors: tuple[Tensor, Tensor]) -> None:
    weight, grad, first, second = state
    adamw(kernels.AdamStep(weight, grad, first, second, births, *factors, 0.9, 0.999, 1e-8, 0.0))
