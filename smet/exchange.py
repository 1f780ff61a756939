"""Collectives over a vector that is cut into one contiguous fragment per rank.

A sparse layer's values, moments and ages are such vectors; ZeRO decides the cuts. Fragments may
be empty and of any length, and a mask tile may straddle two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smet.agreement import of_all

Range = tuple[int, int]
"""(start, length) of a fragment, in elements."""

all_gather_flat: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_flat: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""torch's collectives over flat tensors under their newer names, where it has them."""


def sendable(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``local`` where ``group`` can send it from: NCCL takes nothing from host memory, where ZeRO-Offload keeps it."""
    if group is None or local.device.type != "cpu" or dist.get_backend(group) != "nccl":
        return local
    return local.to(torch.device("cuda", torch.cuda.current_device()))


def all_ranges(own: Sequence[Range], group: dist.ProcessGroup | None) -> list[list[Range]]:
    """For each vector, the ranges of all ranks of ``group``; ``own`` lists this rank's. Collective."""
    if group is None or dist.get_world_size(group) == 1:
        return [[one] for one in own]
    return [list(ranges) for ranges in zip(*of_all(list(own), group), strict=True)]


def gather(local: Tensor, own: Range, total: int, group: dist.ProcessGroup | None) -> Tensor:
    """The whole vector ``(total,)`` from every rank's fragment, bit for bit; where ``group`` sends. Collective."""
    start, length = own
    if length == total and (group is None or dist.get_world_size(group) == 1):
        return local
    local = sendable(local, group)
    whole = local.new_zeros(total)
    whole[start : start + length] = local
    # Summed as integers, the zeros of the other ranks leave every bit pattern as it is.
    dist.all_reduce(whole.view(torch.int32) if whole.element_size() == 4 else whole, group=group)
    return whole


def redistribute(
    vectors: Sequence[Tensor],
    kept: Tensor,
    grown: Tensor,
    ranges: Sequence[Range],
    rank: int,
    group: dist.ProcessGroup | None,
) -> None:
    """Move the kept entries of vectors to their new places, in place; grown places become 0. Collective.

    The order of kept entries does not change, so what a rank sends to another is one contiguous
    run, and each entry crosses the network at most once.

    Args:
        vectors: this rank's fragments, all of one range.
        kept: bool ``(total,)``, old order: which entries survive.
        grown: bool ``(total,)``, new order: which places are new.
        ranges: every rank's range; the same before and after.
        rank: this rank's index in ``ranges``.
    """
    start, length = ranges[rank]
    stay = ~grown
    # As positions these would be found once for all vectors, but take eight bytes of each entry.
    going, coming = kept[start : start + length], stay[start : start + length]
    send: list[int] = []
    receive: list[int] = []
    if len(ranges) > 1:
        held, wanted = _survivor_ranges(kept, ranges), _survivor_ranges(stay, ranges)
        send = [_overlap(held[rank], other) for other in wanted]
        receive = [_overlap(other, wanted[rank]) for other in held]
    for vector in vectors:
        arrived = survivors = vector[going]
        if len(ranges) > 1:
            survivors = sendable(survivors, group)
            arrived = survivors.new_empty(sum(receive))
            dist.all_to_all_single(arrived, survivors, receive, send, group=group)
        vector.zero_()
        vector.masked_scatter_(coming, arrived.to(vector.device))


def _survivor_ranges(marked: Tensor, ranges: Sequence[Range]) -> list[Range]:
    """Which numbers of marked entries (counted from 0) fall into each range."""
    counts = [int(marked[start : start + length].sum()) for start, length in ranges]
    before = {start: int(marked[:start].sum()) for start in {start for start, _ in ranges}}
    return [(before[start], count) for (start, _), count in zip(ranges, counts, strict=True)]


def _overlap(a: Range, b: Range) -> int:
    return max(0, min(a[0] + a[1], b[0] + b[1]) - max(a[0], b[0]))
