"""The kernels in Triton, for tensors on a GPU.

Expand and compress cut the mask into tiles. A first kernel counts each tile's active blocks, a
prefix sum says where each tile's values begin, and then every tile moves its own blocks. Blocks
are moved as integers, the widest that fit, so the result equals the reference bit for bit.
How many blocks are active up to each tile is kept with the mask until it changes.

Nothing here waits for the device. So, unlike the other versions, these do not notice a mask whose
active blocks are not as many as said; they never touch memory outside the tensors because of it.
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
from smet.mask import BlockGrid

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MoveConfig(NamedTuple):
    """How one program of expand or compress works."""

    units: int
    """Integers that it moves."""
    warps: int


BLOCKS = (MoveConfig(2048, 4),)
SINGLE_WEIGHTS = (MoveConfig(2048, 4), MoveConfig(1024, 4), MoveConfig(4096, 4), MoveConfig(4096, 8),
                  MoveConfig(8192, 8))  # fmt: skip
"""What is worth trying for blocks of one integer, where little memory is moved for each bit."""
MAX_LANES = 256
"""Integers of a block that one program moves; larger blocks take several programs."""
COUNTED_TILES = 16
"""Tiles that one program counts."""
ADAM_ELEMENTS = 1024


_known_ends: Any = WeakIdKeyDictionary()
"""Mask -> the state in which it was counted, and its ``_ends`` by size of tile."""


@triton.jit
def _popcount(x):
    """Set bits of each int32 (the compiler knows this form, and puts one instruction in its place)."""
    x = x.to(tl.uint32)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _mask_bytes(bits, at, blocks):
    """Bytes ``at`` of the mask; bits at or beyond ``blocks`` are 0."""
    left = tl.minimum(tl.maximum(blocks - at * 8, 0), 8).to(tl.int32)
    return tl.load(bits + at, mask=left > 0, other=0).to(tl.int32) & ((1 << left) - 1)


@triton.jit
def _count(bits, counts, blocks, tiles, BYTES: tl.constexpr, TILES: tl.constexpr):
    """Active blocks of each tile of ``BYTES`` mask bytes."""
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    byte = _mask_bytes(bits, tile[:, None] * BYTES + tl.arange(0, BYTES)[None, :], blocks)
    tl.store(counts + tile, tl.sum(_popcount(byte), 1), mask=tile < tiles)


@triton.jit
def _tile(bits, ends, blocks, BYTES: tl.constexpr):
    """First block of this tile, active blocks before it, and ``(BYTES, 8)``: which are active, their ranks in it."""
    tile = tl.program_id(0).to(tl.int64)
    byte = _mask_bytes(bits, tile * BYTES + tl.arange(0, BYTES), blocks)
    count = _popcount(byte)
    both = (((tl.cumsum(count, 0) - count) << 8) | byte)[:, None]  # one tensor to be laid out anew, not two
    bit = tl.arange(0, 8)[None, :]
    rank = (both >> 8) + _popcount(both & 0xFF & ((1 << bit) - 1))
    return tile * BYTES * 8, tl.load(ends + tile - 1, mask=tile > 0, other=0), ((both >> bit) & 1) != 0, rank


@triton.jit
def _places(
    first, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """``(BYTES, 8, LANES)``: the tile's blocks, the integers of a block, and where those lie after block ``first``."""
    block = (tl.arange(0, BYTES)[:, None] * 8 + tl.arange(0, 8)[None, :])[:, :, None]
    lane = tl.arange(0, LANES)[None, None, :]
    if CHUNKED:
        lane += tl.program_id(1) * LANES
    place = block * lanes + lane
    if TALL:
        number = first + block
        row = number // across * height + lane // width
        place = (row * across + number % across) * width + lane % width - first * lanes
    return block, lane, place


@triton.jit(do_not_specialize=["active"])
def _expand(
    bits, ends, values, matrix, blocks, active, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    first, before, on, rank = _tile(bits, ends, blocks, BYTES)
    block, lane, place = _places(first, lanes, width, height, across, BYTES, LANES, CHUNKED, TALL)
    held = (on & (rank < active - before))[:, :, None] & (lane < lanes)
    moved = tl.load(values + before * lanes + (rank[:, :, None] * lanes + lane), mask=held, other=0)
    here = (block < blocks - first) & (lane < lanes)
    tl.store(matrix + first * lanes + place, moved, mask=here)


@triton.jit(do_not_specialize=["active"])
def _compress(
    bits, ends, matrix, values, blocks, active, lanes, width, height, across,
    BYTES: tl.constexpr, LANES: tl.constexpr, CHUNKED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    first, before, on, rank = _tile(bits, ends, blocks, BYTES)
    block, lane, place = _places(first, lanes, width, height, across, BYTES, LANES, CHUNKED, TALL)
    held = (on & (rank < active - before))[:, :, None] & (lane < lanes)
    here = (block < blocks - first) & (lane < lanes)
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
    kernel: triton.JITFunction, bits: Tensor, source: Tensor, target: Tensor, grid: BlockGrid, active: int
) -> None:
    """Count, sum up, and run ``kernel`` over the tiles."""
    if bits.dtype != torch.uint8 or bits.device != source.device or bits.numel() < grid.mask_bytes:
        raise RuntimeError(
            f"a mask of {grid.blocks} blocks is {grid.mask_bytes} bytes of uint8 on {source.device}, "
            f"got {bits.numel()} of {bits.dtype} on {bits.device}"
        )
    if not target.numel():
        return
    bits = bits.contiguous()
    height, columns = grid.block
    size = source.element_size()
    integer = _widest_integer(columns * size, source.data_ptr(), target.data_ptr())
    width = columns * size // integer.itemsize  # integers in one row of a block
    lanes = width * height  # and in all of them
    at_once = min(triton.next_power_of_2(lanes), MAX_LANES)
    across = grid.cols // columns
    usual = aligned(bits, source, target)
    key = (kernel.fn.__name__, integer, grid, size, usual, source.device)

    def launch(config: MoveConfig) -> None:
        in_tile = max(config.units // at_once // 8, 1)
        run(
            kernel, (triton.cdiv(grid.mask_bytes, in_tile), triton.cdiv(lanes, at_once)),
            (
                bits, _ends(bits, grid.blocks, in_tile), source.view(integer), target.view(integer),
                grid.blocks, active, lanes, width, height, across,
            ),
            (in_tile, at_once, lanes > at_once, height > 1), (key, config) if usual else None, num_warps=config.warps,
        )  # fmt: skip

    with on_device_of(source):
        launch(fastest(key, lambda: SINGLE_WEIGHTS if lanes == 1 else BLOCKS, launch, source.device))


def _ends(bits: Tensor, blocks: int, in_tile: int) -> Tensor:
    """Active blocks up to the end of each tile of ``in_tile`` mask bytes; kept until torch sees the mask change."""
    if bits.is_inference():  # torch does not count its changes
        return _counted(bits, blocks, in_tile)
    state = bits._version, bits.data_ptr(), blocks
    known = _known_ends.get(bits)
    if known is None or known[0] != state:
        known = _known_ends[bits] = state, {}
    found: dict[int, Tensor] = known[1]
    if in_tile not in found:
        found[in_tile] = _counted(bits, blocks, in_tile)
    return found[in_tile]


def _counted(bits: Tensor, blocks: int, in_tile: int) -> Tensor:
    tiles = triton.cdiv(triton.cdiv(blocks, 8), in_tile)
    counts = torch.empty(tiles, dtype=torch.int32, device=bits.device)
    _count[(triton.cdiv(tiles, COUNTED_TILES),)](bits, counts, blocks, tiles, BYTES=in_tile, TILES=COUNTED_TILES)
    return counts.cumsum(0)


def _widest_integer(*multiples: int) -> torch.dtype:
    """The widest integer in which rows of so many bytes, at such addresses, can be moved."""
    return next(INTEGERS[size] for size in (8, 4, 2, 1) if not any(m % size for m in multiples))


def expand(bits: Tensor, values: Tensor, grid: BlockGrid) -> Tensor:
    """See ``reference.expand``; ``values`` of any dtype."""
    active, rest = divmod(values.numel(), grid.block_size)
    if rest:
        raise RuntimeError(f"{values.numel()} values do not fill blocks of {grid.block_size}")
    matrix = values.new_empty(grid.rows, grid.cols)
    _launch(_expand, bits, values.contiguous().view(-1), matrix.view(-1), grid, active)
    return matrix


def compress(matrix: Tensor, bits: Tensor, grid: BlockGrid, active: int) -> Tensor:
    """See ``reference.compress``; ``matrix`` of any dtype."""
    if matrix.numel() != grid.rows * grid.cols:
        raise RuntimeError(f"{matrix.numel()} dense weights are not {grid.rows} x {grid.cols}")
    values = matrix.new_empty(active * grid.block_size)
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
