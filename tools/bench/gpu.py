"""Kernels on a GPU against the bandwidth that a copy reaches on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from smet import kernels
from smet.mask import TileGrid, pack

from .figures import GPU, SPECS, Figure, unmeasured
from .options import Options
from .spread import median

NAMES = tuple(name for name in SPECS if name.startswith("gpu_"))
ROWS, COLS = 11008, 4096
"""A feed-forward matrix of the 7b model."""
ROUNDS = 50


def figures(options: Options) -> list[Figure]:
    """Fractions of copy bandwidth; not measured without a GPU. The 350m step is timed by ``step_figure``."""
    if options.device != "cuda":
        return unmeasured(NAMES, GPU)
    device = torch.device("cuda")
    copied = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(copied)
    copy = _bandwidth(lambda: target.copy_(copied), 2 * copied.numel())
    best = sorted(copy)[len(copy) // 2]
    note = f"{torch.cuda.get_device_name()}, {ROWS} x {COLS} bf16, copy {best / 1e9:,.0f} GB/s"
    made = []
    for name, (action, moved) in _actions(options, device).items():
        made.append(median(name, [speed / best for speed in _bandwidth(action, moved)], note))
    return made


def _actions(options: Options, device: torch.device) -> dict[str, tuple[Callable[[], Any], int]]:
    """What runs, and the bytes that it must move at least."""
    grid = TileGrid(ROWS, COLS, options.block)
    bits = pack(torch.rand(grid.tiles, device=device) < options.density)
    active = int(kernels.reference.unpack(bits, grid.tiles).sum())
    values = torch.randn(active * grid.tile_size, device=device).bfloat16()
    dense = torch.randn(ROWS, COLS, device=device).bfloat16()
    once = 2 * (dense.numel() + values.numel()) + bits.numel()
    weight, grad, first, second = (torch.rand(1 << 26, device=device) for _ in range(4))
    births = torch.randint(0, 20, (1 << 26,), dtype=torch.uint8, device=device)
    sizes, corrections = torch.full((256,), 1e-3, device=device), torch.ones(256, device=device)
    step = kernels.AdamStep(weight, grad, first, second, births, sizes, corrections, 0.9, 0.999, 1e-8, 0.0)
    return {
        "gpu_expand": (lambda: kernels.expand(bits, values, grid), once),
        "gpu_compress": (lambda: kernels.compress(dense, bits, grid, active), once),
        "gpu_adam": (
            lambda: kernels.adamw(step),
            weight.numel() * (4 * 7 + 1),
        ),
    }


def _bandwidth(action: Callable[[], Any], moved: int) -> list[float]:
    """Bytes per second, round by round."""
    for _ in range(3):
        action()
    speeds = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        action()
        end.record()
        end.synchronize()
        speeds.append(moved / (begin.elapsed_time(end) / 1e3))
    return speeds
