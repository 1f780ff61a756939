"""The product of a few tokens with a sparse matrix on the CPU (``few.cpp``): no dense matrix is made for it."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from smet.kernels import compiler
from smet.mask import TileGrid

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MOST_TOKENS = 4
"""With more, a dense matrix that is made once for all of them is as fast."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where it cannot be built."""
    if (built := compiler.optional("few.cpp", "products of a few tokens are dense on the cpu")) is None:
        return None
    pointer, count, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name in DTYPES.values():
        function = getattr(built, f"smet_few_{name}")
        function.argtypes = [pointer, count, pointer, pointer, pointer, pointer, *[count] * 5, integer, integer]
        function.restype = None
    return built


def starts(active: Tensor, grid: TileGrid) -> Tensor:
    """Active tiles before each row of tiles, int64, of a mask that is unpacked: bool ``(tiles,)``."""
    counts = active.view(grid.shape).sum(1)
    return counts.cumsum(0) - counts


def product(bits: Tensor, starts: Tensor, values: Tensor, x: Tensor, grid: TileGrid, by_rows: bool) -> Tensor:
    """``x M^T`` (``by_rows``) or ``x M``, of the matrix M that ``bits`` and ``values`` are; see ``smet.mask``.

    Args:
        starts: of the mask.
        x: ``(tokens, cols)``, or ``(tokens, rows)``.

    Returns:
        ``(tokens, rows)`` or ``(tokens, cols)``, in the dtype of ``x``.
    """
    built, (tall, wide), (height, width) = library(), grid.shape, grid.tile
    inputs, outputs = (grid.cols, grid.rows) if by_rows else (grid.rows, grid.cols)
    fits = values.dtype in DTYPES and x.dim() == 2 and x.shape[1] == inputs and starts.numel() == tall
    sound = bits.dtype == torch.uint8 and bits.numel() >= grid.mask_bytes and starts.dtype == torch.int64
    if built is None or not fits or not sound or not all(t.is_cpu for t in (bits, starts, values, x)):
        raise RuntimeError(
            f"expected a mask of {grid.tiles} tiles, values in {', '.join(DTYPES.values())} and inputs of {inputs} on "
            f"the cpu, got {bits.numel()} bytes, {values.dtype} on {values.device} and {tuple(x.shape)}"
        )
    bits, values, given = bits.contiguous(), values.contiguous(), x.float().contiguous()
    y = torch.empty(x.shape[0], outputs)
    getattr(built, f"smet_few_{DTYPES[values.dtype]}")(
        bits.data_ptr(), bits.numel(), starts.data_ptr(), values.data_ptr(), given.data_ptr(), y.data_ptr(), tall, wide,
        height, width, x.shape[0], int(by_rows), torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype)
