"""Which tiles kernels can multiply, and from which density on that is likely faster than the dense product."""

from __future__ import annotations

GPU_SIDES = (16, 32, 64, 128)
BREAK_EVEN = {16: 12.6, 32: 3.9, 64: 2.6, 128: 1.8}
"""Time of the three products over that of cuBLAS at density 1, by the smaller side of a tile, and a little: with small
tiles every input is read again for every few outputs. Measured on an H200; see docs/performance-gpu.md."""
STEP_OVER_TILES = 0.6
"""GPU time of a whole step at density 0.25 in tiles of 128 x 128 over that of the dense step, about: what is no product
stays. Measured as above; by the clock it was more, where the GPU waited for Python."""
GPU_FEWEST_TOKENS = 512
"""With fewer, the dense product is as fast or faster."""


def on_gpu(tile: tuple[int, int]) -> bool:
    """Whether Triton's kernels multiply such tiles: sides that are powers of two."""
    return all(side in GPU_SIDES for side in tile)


def worth_it_on_gpu(tile: tuple[int, int], density: float, tokens: int) -> bool:
    """Whether that is likely faster than cuBLAS on the whole matrix."""
    return tokens >= GPU_FEWEST_TOKENS and density * BREAK_EVEN[min(tile)] < 1


CPU_LONGEST = 128
CPU_DENSEST = 0.75
"""Above this density the dense product is likely as fast."""


def on_cpu(tile: tuple[int, int]) -> bool:
    """Whether the C++ kernels multiply such tiles: rows in eights, columns in sixteens."""
    return tile[0] % 8 == 0 and tile[1] % 16 == 0 and max(tile) <= CPU_LONGEST
