"""Products over the active tiles of a matrix on the CPU (``tiles.cpp``): the functions of ``smet.kernels.tiles``.

They use the threads that torch uses, and their results do not depend on how many those are. What a call needs
beside its operands (values packed for the processor, inputs in panels) is kept from call to call by each thread of
Python: to take megabytes anew from the system costs a tenth of a product.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from smet.kernels import compiler, sides
from smet.kernels.checks import plain
from smet.kernels.lists import Groups, Lists
from smet.mask import TileGrid

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp32"}
"""Types that are served, and what they are multiplied as; fp16 goes through fp32."""
FEWEST_TOKENS = 64
"""With fewer, the dense product is as fast or faster."""
LEAST = 32
"""Tokens of one kernel; fewer are filled up."""
TOGETHER, CHUNK = 192, 1024  # as in tiles.cpp

_kept = threading.local()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be built, or the processor lacks AVX-512."""
    if (built := compiler.optional("tiles.cpp", "products over tiles are dense on the cpu")) is None:
        return None
    pointer, count, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    built.smet_tiles_index.argtypes = [pointer, count, count, count, *[pointer] * 6]
    built.smet_tiles_index.restype = count
    if not built.smet_tiles_served():
        return None
    built.smet_tiles_matrix_unit.argtypes, built.smet_tiles_matrix_unit.restype = [integer], None
    built.smet_tiles_matrix_unit(int(has_matrix_unit()))
    for name in ("fp32", "bf16"):
        spread, sample = getattr(built, f"smet_spread_{name}"), getattr(built, f"smet_sample_{name}")
        spread.argtypes = [pointer] * 3 + [count] * 5 + [integer] + [pointer] * 5 + [integer]
        sample.argtypes = [pointer] * 3 + [count] * 5 + [pointer] * 5 + [integer]
        spread.restype = sample.restype = None
    return built


def has_matrix_unit() -> bool:
    """Whether torch's products in bf16 have AMX here: ``ONEDNN_MAX_CPU_ISA`` may hold them, and these, to less."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return compiler.can("amx_bf16") and ("AMX" in most or most in ("", "ALL", "DEFAULT"))


def instructions() -> str:
    """What bf16 is multiplied with here: ``AMX``, ``AVX-512 BF16``, ``AVX-512``, or nothing."""
    built = library()
    return ("", "AVX-512", "AVX-512 BF16", "AMX")[built.smet_tiles_served()] if built is not None else ""


def use_matrix_unit(allowed: bool) -> None:
    """Let bf16 be multiplied on AMX where the processor has it, as it is unless told otherwise; for this process."""
    if (built := library()) is not None:
        built.smet_tiles_matrix_unit(int(allowed))


def serves(tile: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether tiles of this size and type can be multiplied here: rows in eights, columns in sixteens."""
    return sides.on_cpu(tile) and dtype in DTYPES and library() is not None


def worth_it(tile: tuple[int, int], density: float, tokens: int, dtype: torch.dtype) -> bool:
    """Whether that is likely faster than the dense product, which has the matrix unit where there is one."""
    most = sides.CPU_DENSEST
    if dtype == torch.bfloat16 and has_matrix_unit():
        most = 0.4 if tile[0] % 16 == 0 and instructions() == "AMX" else 0.05
    return tokens >= FEWEST_TOKENS and density <= most and dtype != torch.float16


def index(bits: Tensor, grid: TileGrid, active: int) -> tuple[Lists, Lists]:
    """Rows and columns of tiles of a packed mask. Tiles beyond ``active`` are left out."""
    built = library()
    assert built is not None
    tall, wide = grid.rows // grid.tile[0], grid.cols // grid.tile[1]
    rows, columns = (
        Lists(torch.empty(n + 1, dtype=torch.int32), *torch.zeros(2, active, dtype=torch.int32)) for n in (tall, wide)
    )
    bits = bits.contiguous()
    if bits.numel() < grid.mask_bytes:
        raise RuntimeError(f"a mask of {grid.tiles} tiles is {grid.mask_bytes} bytes, got {bits.numel()}")
    built.smet_tiles_index(bits.data_ptr(), tall, wide, active, *[part.data_ptr() for part in (*rows, *columns)])
    return rows, columns


def spread(x: Tensor, values: Tensor, lists: Lists, outputs: int, width: int, inner: int, along: bool) -> Tensor:
    """Each group of ``width`` outputs is the sum over its active tiles: ``(tokens, inputs)`` to ``(tokens, outputs)``.

    Args:
        x: ``(tokens, inputs)``.
        values: the stored tiles, ``(active * width * inner,)``.
        lists: of each tile of outputs.
        along: stored tiles are ``(width, inner)``, else ``(inner, width)``.
    """
    _check(x, values)
    tiles, size = lists.begin.numel() - 1, lists.inner.numel() * width * inner
    if x.dim() != 2 or outputs != tiles * width or x.shape[1] % inner or values.numel() != size:
        raise RuntimeError(
            f"expected (tokens, inputs) and {lists.inner.numel()} tiles of {width} x {inner} for {outputs} outputs, "
            f"got {tuple(x.shape)} and {values.numel()} values"
        )
    tokens = x.shape[0]
    if not tokens:
        return x.new_zeros(0, outputs)
    if x.dtype == torch.float16:
        return spread(x.float(), values.float(), lists, outputs, width, inner, along).half()
    if tokens < LEAST:
        return spread(F.pad(x, (0, 0, 0, LEAST - tokens)), values, lists, outputs, width, inner, along)[:tokens]
    x, values, y, team = _ready(x), _ready(values), x.new_empty(tokens, outputs), torch.get_num_threads()
    r, c = (width, inner) if along else (inner, width)
    # In fp32 both sides count whole; words of two bf16 need half.
    words = -(-team * TOGETHER * (x.shape[1] + outputs + 64) * x.element_size() // 4)
    getattr(library(), f"smet_spread_{DTYPES[x.dtype]}")(
        x.data_ptr(), values.data_ptr(), y.data_ptr(), tokens, x.shape[1], outputs, r, c, int(along),
        *[part.data_ptr() for part in lists], _scratch("packed", -(-values.nbytes // 4)), _scratch("turned", words),
        team,
    )  # fmt: skip
    return y


def sample(a: Tensor, b: Tensor, lists: Lists, groups: dict[int, Groups], rows: int, cols: int) -> Tensor:
    """Active tiles of ``a^T b``, ``(active * rows * cols,)`` in the order of values.

    Args:
        a, b: ``(tokens, rows of the matrix)`` and ``(tokens, columns of it)``.
        lists: of each row of tiles.
        groups: not needed here.
    """
    _check(a, b)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[0]:
        raise RuntimeError(f"expected two matrices of as many rows, got {tuple(a.shape)} and {tuple(b.shape)}")
    tokens, size = a.shape[0], lists.inner.numel() * rows * cols
    if a.shape[1] % rows or b.shape[1] % cols or lists.begin.numel() != a.shape[1] // rows + 1:
        raise RuntimeError(f"expected tiles of {rows} x {cols} in {a.shape[1]} x {b.shape[1]}")
    if not size or not tokens:
        return a.new_zeros(size)
    if a.dtype == torch.float16:
        return sample(a.float(), b.float(), lists, groups, rows, cols).half()
    a, b, out, team = _ready(a), _ready(b), a.new_empty(size), torch.get_num_threads()
    steps = -(-min(CHUNK, tokens) * a.element_size() // 4)
    steps = -(-steps // 16) * 16  # the matrix unit takes sixteen at a time
    words = ((a.shape[1] + 31) // 16 + (b.shape[1] + 31) // 16) * (steps * 16 + 16)
    getattr(library(), f"smet_sample_{DTYPES[a.dtype]}")(
        a.data_ptr(), b.data_ptr(), out.data_ptr(), tokens, a.shape[1], b.shape[1], rows, cols,
        *[part.data_ptr() for part in lists], _scratch("sums", size if tokens > CHUNK else 1),
        _scratch("turned", words), team,
    )  # fmt: skip
    return out


def _scratch(name: str, words: int) -> int:
    """Address of at least ``words`` 32-bit words, at the beginning of a cache line."""
    found: Tensor | None = getattr(_kept, name, None)
    if found is None or found.numel() < words + 16:
        found = torch.empty(words + 16, dtype=torch.int32)
        setattr(_kept, name, found)
    return -(-found.data_ptr() // 64) * 64


def _ready(x: Tensor) -> Tensor:
    """``x`` in rows one after the other, of numbers and not their conjugates or negatives."""
    return x.resolve_conj().resolve_neg().contiguous()


def _check(a: Tensor, b: Tensor) -> None:
    for tensor in (a, b):
        plain("an operand of a product over tiles", tensor)
    if a.dtype != b.dtype or a.dtype not in DTYPES or not a.is_cpu or not b.is_cpu:
        raise RuntimeError(
            f"expected one of {', '.join(map(str, DTYPES))} on the cpu, got {a.dtype} on {a.device} and {b.dtype} on "
            f"{b.device}"
        )
