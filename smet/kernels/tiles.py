"""Products over the active tiles of a matrix, in Triton.

*spread* is a vector product: every group of outputs is the sum over the active tiles of its row (or column) of tiles.
*sample* is the gradient of the values: of ``a^T b``, the active tiles only. Sums are fp32 whatever the dtype, and in
one fixed order, so results are equal from call to call. Tiles are powers of two from 16 to 128; tokens any number.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (the arguments of a Triton kernel have no Python types)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from smet.kernels import sides
from smet.kernels.checks import plain
from smet.kernels.launch import aligned, on_device_of, run
from smet.kernels.lists import Groups, Lists
from smet.kernels.tuning import fastest

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _spread(
    x, values, y, begin, inner, slots, tokens, inputs, outputs,
    W: tl.constexpr, K: tl.constexpr, ALONG: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``(TOKENS, W)`` of y. ALONG: stored tiles are (W, K), else (K, W). STEP inputs at a time.

    With TMA, x and values are descriptors of tiles that the copy engine fetches.
    """
    tiles = outputs // W
    group = tl.program_id(0) % tiles  # neighbours share their tokens
    first_token = tl.program_id(0) // tiles * TOKENS
    t = first_token + tl.arange(0, TOKENS)
    w, k = tl.arange(0, W), tl.arange(0, STEP)
    inside = (t < tokens)[:, None]
    PARTS: tl.constexpr = K // STEP
    first, last = tl.load(begin + group) * PARTS, tl.load(begin + group + 1) * PARTS
    total = tl.zeros((TOKENS, W), tl.float32)
    if TMA:
        for part in range(first, last):
            entry, off = part // PARTS, part % PARTS * STEP
            place, slot = tl.load(inner + entry), tl.load(slots + entry)
            a = x.load([first_token, place * K + off])
            if ALONG:
                total = tl.dot(a, values.load([slot * W, off]).T, total)
            else:
                total = tl.dot(a, values.load([slot * K + off, 0]), total)
    else:
        rows = x + t.to(tl.int64)[:, None] * inputs + k[None, :]
        at = w[None, :] * K + k[:, None] if ALONG else k[:, None] * W + w[None, :]
        for part in range(first, last):
            entry, off = part // PARTS, part % PARTS * STEP
            place, slot = tl.load(inner + entry), tl.load(slots + entry)
            a = tl.load(rows + (place * K + off), mask=inside, other=0)
            b = tl.load(values + slot.to(tl.int64) * (W * K) + off * (1 if ALONG else W) + at)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    place_out = y + t.to(tl.int64)[:, None] * outputs + group * W + w[None, :]
    tl.store(place_out, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _sample(
    a, b, out, begin, inner, group_row, group_first, tokens, a_width, b_width, size,
    R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Up to GROUP active tiles of one row of tiles of ``a^T b``, which share their part of a. With TMA it is one.

    Of SPLITS parts of the tokens a program sums one; out then has so many vectors of ``size``, to be added up.
    """
    row, first = tl.load(group_row + tl.program_id(0)), tl.load(group_first + tl.program_id(0))
    last = tl.load(begin + row + 1)
    if first >= last:
        return
    r, lane = tl.arange(0, R), tl.arange(0, GROUP * C)
    entry = first + lane // C
    held = entry < last
    length = tl.cdiv(tl.cdiv(tokens, SPLITS), STEP) * STEP
    from_token = tl.program_id(1) * length
    to_token = tl.minimum(from_token + length, tokens)
    SWAP: tl.constexpr = R < GROUP * C and not TMA  # the larger side comes first: matrix units want 64 there
    total = tl.zeros((GROUP * C, R) if SWAP else (R, GROUP * C), tl.float32)
    if TMA:
        place = tl.load(inner + first) * C
        for begun in range(from_token, to_token, STEP):
            total = tl.dot(a.load([begun, row * R]).T, b.load([begun, place]), total)
    else:
        column = tl.load(inner + entry, mask=held, other=0) * C + lane % C
        column = tl.max_contiguous(tl.multiple_of(column, C), C)
        for begun in range(from_token, to_token, STEP):
            t = begun + tl.arange(0, STEP)
            inside, at = (t < tokens)[:, None], t.to(tl.int64)[:, None]
            left = tl.load(a + at * a_width + (row * R + r)[None, :], mask=inside, other=0)
            right = tl.load(b + at * b_width + column[None, :], mask=inside & held[None, :], other=0)
            if SWAP:
                total = tl.dot(tl.trans(right), left, total, input_precision=PRECISION)
            else:
                total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    start = out + tl.program_id(1).to(tl.int64) * size + entry.to(tl.int64) * (R * C) + lane % C
    if SWAP:
        tl.store(start[:, None] + r[None, :] * C, total.to(out.dtype.element_ty), mask=held[:, None])
    else:
        tl.store(start[None, :] + r[:, None] * C, total.to(out.dtype.element_ty), mask=held[None, :])


class SpreadConfig(NamedTuple):
    """How one program of *spread* works."""

    tokens: int
    step: int
    """Inputs at a time."""
    warps: int
    stages: int
    tma: bool = False


class SampleConfig(NamedTuple):
    """How one program of *sample* works."""

    group: int
    """Tiles of one row of tiles."""
    step: int
    """Tokens at a time."""
    warps: int
    stages: int
    tma: bool = False
    splits: int = 1
    """Programs that share the tokens of one group of tiles."""


def serves(tile: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether tiles of this size and type can be multiplied here: sides that are powers of two."""
    return dtype in DTYPES and sides.on_gpu(tile)


def worth_it(tile: tuple[int, int], density: float, tokens: int, dtype: torch.dtype) -> bool:
    """Whether that is likely faster than cuBLAS on the whole matrix."""
    return sides.worth_it_on_gpu(tile, density, tokens)


def spread_configs(width: int, inner: int, dtype: torch.dtype, tma: bool) -> list[SpreadConfig]:
    """What is worth trying for tiles of ``width`` outputs and ``inner`` inputs; what reads x least often comes last."""
    if dtype == torch.float32:
        return [SpreadConfig(64, min(inner, 32), 4, 2)]
    step = min(inner, 64)
    if width == 128:
        found = [SpreadConfig(128, step, 4, 3), SpreadConfig(128, step, 8, 3)]
        return [*found, SpreadConfig(128, step, 4, 3, True)] if tma and inner >= 32 else found
    found = [SpreadConfig(128, step, 4, 3), SpreadConfig(256, step, 4, 3), SpreadConfig(256, step, 8, 3)]
    return [*found, SpreadConfig(256, step, 4, 3, True)] if tma and min(width, inner) >= 32 else found


def sample_configs(rows: int, cols: int, dtype: torch.dtype, tma: bool, splits: int = 1) -> list[SampleConfig]:
    """What is worth trying for tiles of ``rows x cols``.

    Args:
        splits: that many programs for each tile keep the device busy.
    """
    if dtype == torch.float32:
        found = [SampleConfig(max(1, 32 // cols), 32, 4, 2)]
    else:
        found = [SampleConfig(max(1, 128 // cols), 64, 4, 3)]
        if cols < 128:
            found.append(SampleConfig(max(1, 256 // cols), 64, 8, 3))
        if tma and rows >= 64 <= cols:
            found.append(SampleConfig(1, 64, 4, 3, True))
    more = [found[0]._replace(splits=splits * found[0].group)]
    if max(rows, cols) >= 64:  # what matrix units need
        more.append(found[0]._replace(group=1, splits=splits))
    return found + (list(dict.fromkeys(more)) if splits > 1 else [])


def spread(x: Tensor, values: Tensor, lists: Lists, outputs: int, width: int, inner: int, along: bool) -> Tensor:
    """Sums over active tiles: ``(tokens, inputs)`` to ``(tokens, outputs)``; those without tiles are 0.

    Args:
        values: tile by tile, ``(active * width * inner,)``, in the dtype of ``x``.
        lists: of each group of outputs.
        width: outputs of a tile.
        inner: inputs of a tile.
        along: whether stored tiles are ``(width, inner)``, else ``(inner, width)``.
    """
    _check(x, values)
    tiles, size = lists.begin.numel() - 1, lists.inner.numel() * width * inner
    if x.dim() != 2 or values.numel() != size or outputs != tiles * width:
        raise RuntimeError(
            f"{tuple(x.shape)} inputs and {values.numel()} values do not fit {lists.inner.numel()} tiles of "
            f"{width} x {inner} and {outputs} outputs"
        )
    x, values, tokens = x.contiguous(), values.contiguous(), x.shape[0]
    y = x.new_empty(tokens, outputs)
    if not y.numel() or not values.numel():
        return y.zero_()
    usual = aligned(x, values)
    tma = usual and _worth_descriptors(x, tokens * values.numel())
    key = ("spread", width, inner, along, x.dtype, tokens, x.shape[1], outputs, usual, x.device)

    def launch(config: SpreadConfig) -> None:
        given: tuple[Any, Any] = (x, values)
        if config.tma:
            tile = [width, config.step] if along else [config.step, width]
            given = (
                TensorDescriptor.from_tensor(x, [config.tokens, config.step]),
                TensorDescriptor.from_tensor(values.view(-1, inner if along else width), tile),
            )
        constants = (width, inner, along, config.tokens, config.step, config.tma, _precision(x))
        programs = (outputs // width * triton.cdiv(tokens, config.tokens), 1)
        run(
            _spread, programs, (*given, y, *lists, tokens, x.shape[1], outputs), constants,
            (key, config, constants[-1]) if usual else None, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    with on_device_of(x):
        launch(fastest(key, lambda: spread_configs(width, inner, x.dtype, tma), launch, x.device))
    return y


def sample(a: Tensor, b: Tensor, lists: Lists, groups: dict[int, Groups], rows: int, cols: int) -> Tensor:
    """Active tiles of ``a^T b``, ``(active * rows * cols,)`` in the order of values.

    Args:
        a, b: ``(tokens, rows of the matrix)`` and ``(tokens, columns of it)``.
        lists: of each row of tiles.
        groups: kept from call to call; see ``groups_of``.
    """
    _check(a, b)
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[0]:
        raise RuntimeError(f"expected two matrices of as many rows, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b, tokens = a.contiguous(), b.contiguous(), a.shape[0]
    size = lists.inner.numel() * rows * cols
    if not size or not tokens:
        return a.new_zeros(size)
    usual = aligned(a, b)
    tma = usual and _worth_descriptors(a, tokens * size)
    key = ("sample", rows, cols, a.dtype, tokens, a.shape[1], b.shape[1], size, usual, a.device)

    def launch(config: SampleConfig) -> Tensor:
        if config.group not in groups:
            groups[config.group] = groups_of(lists, config.group)
        chosen, given = groups[config.group], (a, b)
        if config.tma:
            tiles = [config.step, rows], [config.step, cols]
            given = tuple(TensorDescriptor.from_tensor(*pair) for pair in zip((a, b), tiles, strict=True))
        split = config.splits > 1
        out = a.new_empty(config.splits * size, dtype=torch.float32 if split else a.dtype)
        run(
            _sample, (chosen.row.numel(), config.splits),
            (*given, out, lists.begin, lists.inner, *chosen, tokens, a.shape[1], b.shape[1], size),
            (rows, cols, config.group, config.step, config.splits, config.tma, _precision(a)),
            (key, config, _precision(a)) if usual else None, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        return out.view(config.splits, size).sum(0).to(a.dtype) if split else out

    with on_device_of(a):
        return launch(
            fastest(key, lambda: sample_configs(rows, cols, a.dtype, tma, _splits(a, lists)), launch, a.device)
        )


def _splits(x: Tensor, lists: Lists) -> int:
    """Programs for each tile that give every multiprocessor two; 1 where there are enough tiles or few tokens."""
    if not x.is_cuda:
        return 1
    programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    return min(triton.next_power_of_2(programs // lists.inner.numel() + 1) // 2 or 1, max(1, x.shape[0] // 512), 16)


def groups_of(lists: Lists, size: int) -> Groups:
    """Tiles of each row of tiles in groups of ``size``. A few empty groups come last: how many there are in all is
    not known without waiting for the device."""
    begin = lists.begin.long()
    counts = (begin.diff() + size - 1) // size
    ends = counts.cumsum(0)
    number = torch.arange(lists.inner.numel() // size + counts.numel(), device=begin.device)
    row = torch.searchsorted(ends, number, right=True).clamp_(max=counts.numel() - 1)
    first = begin[row] + (number - ends[row] + counts[row]) * size
    return Groups(row.int(), first.int())


def _precision(x: Tensor) -> str:
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _worth_descriptors(x: Tensor, products: int) -> bool:
    """Whether the device has a copy engine for tiles, and enough to multiply: descriptors cost some 20 us of Python
    for each launch."""
    return products >= 1 << 34 and x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9


def _check(a: Tensor, b: Tensor) -> None:
    for tensor in (a, b):
        plain("an operand of a product over tiles", tensor)
    if a.dtype != b.dtype or a.device != b.device:
        raise RuntimeError(f"expected one dtype and device, got {a.dtype} on {a.device} and {b.dtype} on {b.device}")
