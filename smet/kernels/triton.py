"""The kernels in Triton, for tensors on a GPU.

Expand and compress cut the mask into tiles. A first kernel counts each tile's active blocks, a
prefix sum says where each tile's values begin, and then every tile moves its own blocks. Elements
are moved as integers of their size, so the result equals the reference bit for bit in any dtype.

Nothing here waits for the device. So, unlike the other versions, these do not notice a mask whose
active blocks are not as many as said; they never touch memory outside the tensors because of it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (the arguments of a Triton kernel have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smet.kernels import reference
from smet.mask import packed_bytes

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
TILE_ELEMENTS = 2048
"""Dense elements that one program moves."""
MAX_LANES = 256
"""Elements of a block that one program moves; larger blocks take several programs."""
ADAM_ELEMENTS = 1024


@triton.jit
def _count(bits, counts, blocks, TILE: tl.constexpr):
    """Active blocks of each tile of ``TILE`` blocks."""
    tile = tl.program_id(0).to(tl.int64)
    byte = tile * (TILE // 8) + tl.arange(0, TILE // 8)
    x = tl.load(bits + byte, mask=byte * 8 < blocks, other=0).to(tl.int32)
    valid = tl.minimum(blocks - byte * 8, 8).to(tl.int32)
    x = tl.where(valid > 0, x & ((1 << tl.maximum(valid, 0)) - 1), 0)
    x = x - ((x >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    x = (x + (x >> 4)) & 0x0F
    tl.store(counts + tile, tl.sum(x, 0))


@triton.jit
def _ranks(bits, ends, tile, blocks, TILE: tl.constexpr):
    """The tile's blocks ``(TILE,)``, whether each is active, and how many active ones precede it."""
    block = tile * TILE + tl.arange(0, TILE)
    byte = tl.load(bits + block // 8, mask=block < blocks, other=0).to(tl.int32)
    active = (byte >> (block % 8).to(tl.int32)) & 1
    before = tl.load(ends + tile - 1, mask=tile > 0, other=0)
    return block, active != 0, before + tl.cumsum(active, 0) - active


@triton.jit(do_not_specialize=["blocks", "active"])
def _expand(bits, ends, values, dense, blocks, active, block_size, TILE: tl.constexpr, LANES: tl.constexpr):
    block, on, rank = _ranks(bits, ends, tl.program_id(0).to(tl.int64), blocks, TILE)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    here = (block < blocks)[:, None] & (lane < block_size)[None, :]
    held = (on & (rank < active))[:, None] & (lane < block_size)[None, :]
    moved = tl.load(values + rank[:, None] * block_size + lane[None, :], mask=held, other=0)
    tl.store(dense + block[:, None] * block_size + lane[None, :], moved, mask=here)


@triton.jit(do_not_specialize=["blocks", "active"])
def _compress(bits, ends, dense, values, blocks, active, block_size, TILE: tl.constexpr, LANES: tl.constexpr):
    block, on, rank = _ranks(bits, ends, tl.program_id(0).to(tl.int64), blocks, TILE)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    held = (on & (rank < active))[:, None] & (lane < block_size)[None, :]
    moved = tl.load(dense + block[:, None] * block_size + lane[None, :], mask=held, other=0)
    tl.store(values + rank[:, None] * block_size + lane[None, :], moved, mask=held)


@triton.jit(do_not_specialize=["count"])
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


def _launch(kernel: triton.JITFunction, bits: Tensor, source: Tensor, target: Tensor, *sizes: int) -> None:
    """Count, sum up, and run ``kernel`` over the tiles. ``sizes`` are (blocks, active, block_size)."""
    blocks, active, block_size = sizes
    if bits.dtype != torch.uint8 or bits.device != source.device or bits.numel() < packed_bytes(blocks):
        raise RuntimeError(
            f"a mask of {blocks} blocks is {packed_bytes(blocks)} bytes of uint8 on {source.device}, "
            f"got {bits.numel()} of {bits.dtype} on {bits.device}"
        )
    if not blocks or not target.numel():
        return
    bits = bits.contiguous()
    lanes = min(triton.next_power_of_2(block_size), MAX_LANES)
    tile = max(TILE_ELEMENTS // lanes, 8)
    tiles = triton.cdiv(blocks, tile)
    integer = INTEGERS[source.element_size()]
    with torch.cuda.device_of(source):
        counts = torch.empty(tiles, dtype=torch.int32, device=bits.device)
        _count[(tiles,)](bits, counts, blocks, TILE=tile)
        ends = counts.cumsum(0)
        kernel[(tiles, triton.cdiv(block_size, lanes))](
            bits, ends, source.view(integer), target.view(integer), *sizes, TILE=tile, LANES=lanes
        )


def expand(bits: Tensor, values: Tensor, blocks: int, block_size: int) -> Tensor:
    """See ``reference.expand``; ``values`` of any dtype."""
    active, rest = divmod(values.numel(), block_size)
    if rest:
        raise RuntimeError(f"{values.numel()} values do not fill blocks of {block_size}")
    dense = values.new_empty(blocks * block_size)
    _launch(_expand, bits, values.contiguous().view(-1), dense, blocks, active, block_size)
    return dense


def compress(dense: Tensor, bits: Tensor, blocks: int, block_size: int, active: int) -> Tensor:
    """See ``reference.compress``; ``dense`` of any dtype."""
    if dense.numel() != blocks * block_size:
        raise RuntimeError(f"{dense.numel()} dense weights are not {blocks} blocks of {block_size}")
    values = dense.new_empty(active * block_size)
    _launch(_compress, bits, dense.contiguous().view(-1), values, blocks, active, block_size)
    return values


def adamw(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    birth: Tensor | None,
    step_size: Tensor,
    correction: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """See ``reference.adamw``, which also takes what is not fp32 (gradients: any) or not contiguous."""
    state = [weight, exp_avg, exp_avg_sq]
    vectors = [*state, grad] if birth is None else [*state, grad, birth]
    if any(t.dtype != torch.float32 for t in state) or not all(t.is_contiguous() for t in vectors):
        reference.adamw(weight, grad, exp_avg, exp_avg_sq, birth, step_size, correction, beta1, beta2, eps, decay)
        return
    count = weight.numel()
    if any(t.numel() != count or t.device != weight.device for t in vectors):
        raise RuntimeError(f"expected vectors of {count} on {weight.device}, got {[t.numel() for t in vectors]}")
    if not count:
        return
    with torch.cuda.device_of(weight):
        _adamw[(triton.cdiv(count, ADAM_ELEMENTS),)](
            weight, grad, exp_avg, exp_avg_sq, weight if birth is None else birth, step_size, correction,
            1 - beta1, beta2, 1 - beta2, eps, 1 - decay, count, AGED=birth is not None, SIZE=ADAM_ELEMENTS,
        )  # fmt: skip
    torch.autograd.graph.increment_version(state)
