"""The kernels in Triton, for tensors on a GPU.

Expand and compress cut the mask into pieces. A first kernel counts each piece's active tiles, a
prefix sum says where each piece's values begin, and then every piece moves its own tiles. Tiles
are moved as integers, the widest that fit, so the result equals the reference bit for bit.
How many tiles are active up to each piece is kept with the mask until it changes.

Nothing here waits for the device. So, unlike the other versions, these do not notice a mask whose
active tiles are not as many as said; they never touch memory outside the tensors because of it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (the arguments of a Triton kernel have no Python types)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from smet.kernels import reference
from smet.kernels.launch import aligned, on_device_of, run
from smet.kernels.step import AdamStep
from smet.kernels.tuning import fastest
from smet.mask import TileGrid

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MoveConfig(NamedTuple):
    """How one program of expand or compress works."""

    units: int
    """Integers that it moves."""
    warps: int


BLOCKS = (MoveConfig(2048, 4),)
SINGLE_WEIGHTS = (MoveConfig(2048, 4), MoveConfig(1024, 4), MoveConfig(4096, 4), MoveConfig(4096, 8),
                  MoveConfig(8192, 8))  # fmt: skip
"""What is worth trying for tiles of one integer, where little memory is moved for each bit."""
MAX_LANES = 256
"""Integers of a tile that one program moves; larger tiles take several programs."""
COUNTED_TILES = 16
"""Pieces that one program counts."""
ADAM_ELEMENTS = 1024


_known_ends: Any = WeakIdKeyDictionary()
"""Mask -> the state in which it was counted, and its ``_ends`` by size of piece."""


@triton.jit
def _popcount(x):
    """Set bits of each int32 (the compiler knows this form, and puts one instruction in its place)."""
    x = x.to(tl.uint32)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _mask_bytes(bits, at, tiles):
    """Bytes ``at`` of the mask; bits at or beyond ``tiles`` are 0."""
    left = tl.minimum(tl.maximum(tiles - at * 8, 0), 8).to(tl.int32)
    return tl.load(bits + at, mask=left > 0, other=0).to(tl.int32) & ((1 << left) - 1)


@triton.jit
def _count(bits, counts, tiles, pieces, BYTES: tl.constexpr, TILES: tl.constexpr):
    """Active tiles of each piece of ``BYTES`` mask bytes."""
    piece = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    byte = _mask_bytes(bits, piece[:, None] * BYTES + tl.arange(0, BYTES)[None, :], tiles)
    tl.store(counts + piece, tl.sum(_popcount(byte), 1), mask=piece < pieces)


@triton.jit
def _piece(bits, ends, tiles, BYTES: tl.constexpr):
    """First tile of this piece, active tiles before it, and ``(BYTES, 8)``: which are active, their ranks in it."""
    piece = tl.program_id(0).to(tl.int64)
    byte = _mask_bytes(bits, piece * BYTES + tl.arange(0, BYTES), tiles)
    count = _popcount(byte)
    both = (((tl.cumsum(count, 0) - count) << 8) | byte)[:, None]  # one tensor to be laid out anew, not two
    bit = tl.arange(0, 8)[None, :]
    rank = (both >> 8) + _popcount(both & 0xFF & ((1 << bit) - 1))
    return piece * BYTES * 8, tl.load(ends + piece - 1, mask=piece > 0, other=0), ((both >> bit) & 1) != 0, rank


@triton.jit
def _places(
    first, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """``(BYTES, 8, LANES)``: the piece's tiles, the integers of a tile, and where those lie after tile ``first``."""
    tile = (tl.arange(0, BYTES)[:, None] * 8 + tl.arange(0, 8)[None, :])[:, :, None]
    lane = tl.arange(0, LANES)[None, None, :]
    if CHUNKED:
        lane += tl.program_id(1) * LANES
    place = tile * lanes + lane
    if TALL:
        number = first + tile
        row = number // across * height + lane // width
        place = (row * across + number % across) * width + lane % width - first * lanes
    return tile, lane, place


@triton.jit(do_not_specialize=["active"])
def _expand(
    bits, ends, values, matrix, tiles, active, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    first, before, on, rank = _piece(bits, ends, tiles, BYTES)
    tile, lane, place = _places(first, lanes, width, height, across, BYTES, LANES, CHUNKED, TALL)
    held = (on & (rank < active - before))[:, :, None] & (lane < lanes)
    moved = tl.load(values + before * lanes + (rank[:, :, None] * lanes + lane), mask=held, other=0)
    here = (tile < tiles - first) & (lane < lanes)
    tl.store(matrix + first * lanes + place, moved, mask=here)


@triton.jit(do_not_specialize=["active"])
def _compress(
    bits, ends, matrix, values, tiles, active, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    first, before, on, rank = _piece(bits, ends, tiles, BYTES)
    tile, lane, place = _places(first, lanes, width, height, across, BYTES, LANES, CHUNKED, TALL)
    held = (on & (rank < active - before))[:, :, None] & (lane < lanes)
    here = (tile < tiles - first) & (lane < lanes)
    moved = tl.load(matrix + first * lanes + place, mask=here, other=0)
    tl.store(values + before * lanes + (rank[:, :, None] * lanes + lane), moved, mask=held)


@triton.jit
def _adamw(
    weight, grad, exp_avg, exp_avg_sq, birth, step_size, correction,
    beta1_rest, beta2, beta2_rest, eps, keep, count,
    AGED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < count
    g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
    m = tl.load(exp_avg + at, mask=inside, other=0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0)
    w = tl.load(weight + at, mask=inside, other=0)
    code = tl.load(birth + at, mask=inside, other=0).to(tl.int32) if AGED else tl.zeros((SIZE,), tl.int32)
    m += beta1_rest * (g - m)
    v = beta2 * v + beta2_rest * g * g
    denominator = tl.div_rn(tl.sqrt_rn(v), tl.load(correction + code)) + eps
    w = w * keep - tl.div_rn(tl.load(step_size + code) * m, denominator)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(weight + at, w, mask=inside)


def _launch(
    kernel: triton.JITFunction, bits: Tensor, source: Tensor, target: Tensor, grid: TileGrid, active: int
) -> None:
    """Count, sum up, and run ``kernel`` over the pieces."""
    if bits.dtype != torch.uint8 or bits.device != source.device or bits.numel() < grid.mask_bytes:
        raise RuntimeError(
            f"a mask of {grid.tiles} tiles is {grid.mask_bytes} bytes of uint8 on {source.device}, "
            f"got {bits.numel()} of {bits.dtype} on {bits.device}"
        )
    if not target.numel():
        return
    bits = bits.contiguous()
    height, columns = grid.tile
    size = source.element_size()
    integer = _widest_integer(columns * size, source.data_ptr(), target.data_ptr())
    width = columns * size // integer.itemsize  # integers in one row of a tile
    lanes = width * height  # and in all of them
    at_once = min(triton.next_power_of_2(lanes), MAX_LANES)
    across = grid.cols // columns
    usual = aligned(bits, source, target)
    key = (kernel.fn.__name__, integer, grid, size, usual, source.device)

    def launch(config: MoveConfig) -> None:
        in_piece = max(config.units // at_once // 8, 1)
        run(
            kernel, (triton.cdiv(grid.mask_bytes, in_piece), triton.cdiv(lanes, at_once)),
            (
                bits, _ends(bits, grid.tiles, in_piece), source.view(integer), target.view(integer),
                grid.tiles, active, lanes, width, height, across,
            ),
            (in_piece, at_once, lanes > at_once, height > 1), (key, config) if usual else None, num_warps=config.warps,
        )  # fmt: skip

    with on_device_of(source):
        launch(fastest(key, lambda: SINGLE_WEIGHTS if lanes == 1 else BLOCKS, launch, source.device))


def _ends(bits: Tensor, tiles: int, in_piece: int) -> Tensor:
    """Active tiles up to the end of each piece of ``in_piece`` mask bytes; kept until torch sees the mask change."""
    if bits.is_inference():  # torch does not count its changes
        return _counted(bits, tiles, in_piece)
    state = bits._version, bits.data_ptr(), tiles
    known = _known_ends.get(bits)
    if known is None or known[0] != state:
        known = _known_ends[bits] = state, {}
    found: dict[int, Tensor] = known[1]
    if in_piece not in found:
        found[in_piece] = _counted(bits, tiles, in_piece)
    return found[in_piece]


def _counted(bits: Tensor, tiles: int, in_piece: int) -> Tensor:
    pieces = triton.cdiv(triton.cdiv(tiles, 8), in_piece)
    counts = torch.empty(pieces, dtype=torch.int32, device=bits.device)
    _count[(triton.cdiv(pieces, COUNTED_TILES),)](bits, counts, tiles, pieces, BYTES=in_piece, TILES=COUNTED_TILES)
    return counts.cumsum(0)


def _widest_integer(*multiples: int) -> torch.dtype:
    """The widest integer in which rows of so many bytes, at such addresses, can be moved."""
    return next(INTEGERS[size] for size in (8, 4, 2, 1) if not any(m % size for m in multiples))


def expand(bits: Tensor, values: Tensor, grid: TileGrid) -> Tensor:
    """See ``reference.expand``; ``values`` of any dtype."""
    active, rest = divmod(values.numel(), grid.tile_size)
    if rest:
        raise RuntimeError(f"{values.numel()} values do not fill tiles of {grid.tile_size}")
    matrix = values.new_empty(grid.rows, grid.cols)
    _launch(_expand, bits, values.contiguous().view(-1), matrix.view(-1), grid, active)
    return matrix


def compress(matrix: Tensor, bits: Tensor, grid: TileGrid, active: int) -> Tensor:
    """See ``reference.compress``; ``matrix`` of any dtype."""
    if matrix.numel() != grid.rows * grid.cols:
        raise RuntimeError(f"{matrix.numel()} dense weights are not {grid.rows} x {grid.cols}")
    values = matrix.new_empty(active * grid.tile_size)
    _launch(_compress, bits, matrix.contiguous().view(-1), values, grid, active)
    return values


def adamw(step: AdamStep) -> None:
    """See ``reference.adamw``, which also takes what is not fp32 (gradients: any) or not contiguous."""
    if any(t.dtype != torch.float32 for t in step.changed) or not all(t.is_contiguous() for t in step.vectors):
        reference.adamw(step)
        return
    weight, count = step.weight, step.weight.numel()
    if any(t.numel() != count or t.device != weight.device for t in step.vectors):
        raise RuntimeError(f"expected vectors of {count} on {weight.device}, got {[t.numel() for t in step.vectors]}")
    if not count:
        return
    with on_device_of(weight):
        _adamw[(triton.cdiv(count, ADAM_ELEMENTS),)](
            weight, step.grad, step.exp_avg, step.exp_avg_sq, weight if step.birth is None else step.birth,
            step.step_size, step.correction, 1 - step.beta1, step.beta2, 1 - step.beta2, step.eps, 1 - step.decay,
            count, AGED=step.birth is not None, SIZE=ADAM_ELEMENTS,
        )  # fmt: skip
    torch.autograd.graph.increment_version(step.changed)
