"""What every version of the kernels has to do, whatever it is written in: checks against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smet.kernels import Kernels, reference
from smet.kernels.step import AdamStep
from smet.mask import TileGrid, pack

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SIZES = [(0, 1), (1, 1), (1, 256), (63, 1), (64, 1), (65, 1), (1000, 2), (4099, 1), (333, 3), (260, 4), (131, 7),
         (150, 8), (129, 16), (70, 32), (67, 33), (66, 64), (65, 100), (19, 256), (9, 300)]  # fmt: skip
TILINGS = [(6, 8, (2, 2)), (66, 130, (2, 1)), (12, 99, (4, 3)), (64, 48, (16, 16)), (31, 7, (31, 1)),
           (40, 130, (1, 13)),
           (70, 60, (7, 5)), (64, 192, (32, 64)), (130, 64, (2, 64)), (20, 0, (2, 2))]  # fmt: skip
GRIDS = [*(TileGrid(1, blocks * size, (1, size)) for blocks, size in SIZES), *(TileGrid(*t) for t in TILINGS)]
"""None, odd numbers of blocks and of weights in them, each size that has code of its own, tall tiles."""
DENSITIES = [0.0, 0.01, 0.25, 0.5, 1.0]


def mask(blocks: int, density: float, seed: int = 0, stray_bits: bool = True) -> tuple[Tensor, int]:
    """A packed mask and its number of active tiles; ``stray_bits`` sets the bits past the last tile."""
    active = torch.rand(blocks, generator=torch.Generator().manual_seed(seed)) < density
    bits = pack(active)
    if stray_bits and blocks % 8:
        bits[-1] |= (0xFF << blocks % 8) & 0xFF
    return bits, int(active.sum())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, which torch.equal is not for NaN and -0."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def check_moves(
    kernels: Kernels, grid: TileGrid, density: float, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> None:
    """Expand and compress do with every bit pattern (NaNs, infinities, signed zeros) what the reference does.

    The reference gets them as integers, since torch turns a signalling half-precision NaN into a quiet one.
    """
    bits, active = mask(grid.tiles, density, seed)
    width = torch.empty(0, dtype=dtype).element_size()
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (grid.rows * grid.cols * width,), dtype=torch.uint8, generator=random)
    matrix = noise.to(device).view(dtype).view(grid.rows, grid.cols)
    values = matrix.view(-1)[: active * grid.tile_size].flip(0)
    bits = bits.to(device)
    as_integers = INTEGERS[width]

    expanded = kernels.expand(bits, values, grid)
    expected = reference.expand(bits, values.view(as_integers), grid)
    assert expanded.dtype == dtype and torch.equal(expanded.view(as_integers), expected)
    compressed = kernels.compress(matrix, bits, grid, active)
    expected = reference.compress(matrix.view(as_integers), bits, grid, active)
    assert compressed.dtype == dtype and torch.equal(compressed.view(as_integers), expected)


def adam_state(
    count: int, aged: bool, grad_dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> list[Tensor | None]:
    """Random arguments of ``adamw``: weight, gradient, moments, birth codes (or None), the two tables."""
    random = torch.Generator().manual_seed(seed)
    weight, grad, exp_avg, exp_avg_sq = (torch.randn(count, generator=random) for _ in range(4))
    birth = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=random)
    step_size = torch.rand(256, generator=random) * 1e-2
    correction = torch.rand(256, generator=random) + 0.03
    state = [weight, grad.to(grad_dtype), exp_avg, exp_avg_sq.square(), birth, step_size, correction]
    return [t.to(device) if aged or t is not birth else None for t in state]


def check_adamw(
    kernels: Kernels, count: int, aged: bool, grad_dtype: torch.dtype, decay: float = 1e-3, device: str = "cpu"
) -> None:
    """Three steps stay within a few roundings of the reference in fp64, and write nothing else."""
    ours = adam_state(count, aged, grad_dtype, device)
    exact = [t.double() if t is not None and t.dtype == torch.float32 else t for t in adam_state(count, aged)]
    exact[1] = ours[1].cpu().double()
    kept = [None if t is None else t.clone() for t in ours]
    for _ in range(3):
        kernels.adamw(AdamStep(*ours, 0.9, 0.999, 1e-8, decay))
        reference.adamw(AdamStep(*exact, 0.9, 0.999, 1e-8, decay))
    for changed in (0, 2, 3):
        assert count == 0 or not torch.equal(ours[changed], kept[changed])
        torch.testing.assert_close(ours[changed].cpu().double(), exact[changed], rtol=2e-6, atol=2e-7)
    for unchanged in (1, 4, 5, 6):
        assert ours[unchanged] is None or same_bits(ours[unchanged], kept[unchanged])


def check_refusals(kernels: Kernels, device: str = "cpu") -> None:
    """Arguments that would make a kernel leave its tensors are refused."""
    bits, active = mask(100, 0.5)
    bits, values, matrix = bits.to(device), torch.ones(active * 3, device=device), torch.ones(10, 30, device=device)
    grid = TileGrid(10, 30, (1, 3))
    with pytest.raises(RuntimeError, match="do not fill tiles of 3"):
        kernels.expand(bits, values[:-1], grid)
    with pytest.raises(RuntimeError, match="100 tiles is 13 bytes of uint8"):
        kernels.expand(bits[:-1], values, grid)
    with pytest.raises(RuntimeError, match="100 tiles is 13 bytes of uint8"):
        kernels.compress(matrix, bits.short(), grid, active)
    with pytest.raises(RuntimeError, match="not 10 x 30"):
        kernels.compress(matrix[:-1], bits, grid, active)
    state = adam_state(50, aged=True, device=device)
    with pytest.raises(RuntimeError, match="expected vectors of 50"):
        kernels.adamw(AdamStep(state[0], state[1][:-1], *state[2:], 0.9, 0.999, 1e-8, 0.0))
