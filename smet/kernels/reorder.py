"""The columns of a matrix in another order: C++ on CPUs (``reorder.cpp``), torch elsewhere."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor, nn

from smet.kernels import compiler

GRAIN = 1 << 16
"""Elements that are worth one more thread."""


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """``y[..., i] = x[..., order[i]]``.

    Args:
        x: ``(..., n)``.
        order: int32 ``(n,)``, a permutation; on the device of ``x``.
    """
    size = x.element_size()
    if not x.is_cpu or size not in (2, 4) or type(x) not in (Tensor, nn.Parameter) or (built := library()) is None:
        return x.index_select(-1, order)
    cols = order.numel()
    if x.shape[-1] != cols:
        raise RuntimeError(f"expected (..., {cols}), got {tuple(x.shape)}")
    x = x.resolve_conj().resolve_neg().contiguous()
    y = torch.empty_like(x)
    team = max(1, min(torch.get_num_threads(), x.numel() // GRAIN))
    move = built.smet_reorder_16 if size == 2 else built.smet_reorder_32
    move(x.data_ptr(), order.data_ptr(), y.data_ptr(), x.numel() // max(cols, 1), cols, team)
    return y


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled function; None where it cannot be built."""
    if (built := compiler.optional("reorder.cpp")) is None:
        return None
    pointer, count, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for move in (built.smet_reorder_16, built.smet_reorder_32):
        move.argtypes, move.restype = [pointer, pointer, pointer, count, count, integer], None
    return built
