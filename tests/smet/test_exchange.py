"""Fragments of a vector: gathered bit for bit, redistributed for any cuts, on real ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smet.exchange import Range, all_ranges, gather, redistribute
from tests.distributed import run_ranks

DTYPES = (torch.float32, torch.float64, torch.uint8)
BLOCK = 6
CASES = 12


def expected_vector(vector: Tensor, kept: Tensor, grown: Tensor) -> Tensor:
    """One element after the other: survivors keep their order, grown places are 0."""
    survivors = iter(vector[kept].tolist())
    values = [0 if new else next(survivors) for new in grown.tolist()]
    return torch.tensor(values, dtype=vector.dtype)


def draw(total: int, changed: int, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, grown): ``changed`` entries leave and as many places are new."""
    rng = torch.Generator().manual_seed(seed)
    kept, grown = torch.ones(total, dtype=torch.bool), torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=rng)[:changed]] = False
    grown[torch.randperm(total, generator=rng)[:changed]] = True
    return kept, grown


@given(st.integers(0, 200), st.data())
def test_on_one_rank_survivors_keep_their_order(total: int, data: st.DataObject) -> None:
    kept, grown = draw(total, data.draw(st.integers(0, total)), data.draw(st.integers(0, 99)))
    vector = torch.arange(1, total + 1, dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    moved = vector.clone()
    redistribute([moved], kept, grown, [(0, total)], 0, None)
    assert torch.equal(moved, expected_vector(vector, kept, grown))


def cuts(total: int, ranks: int, case: int) -> list[Range]:
    """Ranges of all ranks: even ones, then random ones with empty fragments and cuts inside blocks."""
    rng = torch.Generator().manual_seed(case)
    kind = case % 4
    if kind == 0:
        size = -(-total // ranks)
        edges = [min(total, size * rank) for rank in range(ranks + 1)]
    elif kind == 1:  # all on one rank
        owner = case // 4 % ranks
        return [(0, total) if rank == owner else (0, 0) for rank in range(ranks)]
    else:
        inner = torch.randint(0, total + 1, (ranks - 1,), generator=rng).sort().values.tolist()
        edges = [0, *inner, total]
    ranges = [(lo, hi - lo) for lo, hi in zip(edges, edges[1:], strict=False)]
    return [(0, 0) if length == 0 and kind == 3 else (start, length) for start, length in ranges]


def bit_patterns(total: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: -0.0, denormals, infinities and NaNs of every payload among them (fp32)."""
    rng = torch.Generator().manual_seed(seed)
    if dtype == torch.float32:
        return torch.randint(-(2**31), 2**31, (total,), generator=rng).to(torch.int32).view(torch.float32)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (total,), generator=rng, dtype=torch.uint8)
    return torch.randn(total, generator=rng, dtype=dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def exchange_on_ranks() -> dict[str, int]:
    """Every case on every rank; counts what the cases covered."""
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    seen = {"empty": 0, "straddling": 0, "crossing": 0}
    for case in range(CASES):
        blocks = 5 + 7 * case
        total = blocks * BLOCK
        ranges = cuts(total, ranks, case)
        assert all_ranges([ranges[rank], (rank, 7)], group) == [ranges, [(other, 7) for other in range(ranks)]]
        start, length = ranges[rank]
        kept, grown = (t.repeat_interleave(BLOCK) for t in draw(blocks, case % (blocks + 1), case))
        seen["empty"] += any(length == 0 for _, length in ranges)
        seen["straddling"] += any(start % BLOCK and length for start, length in ranges)
        for dtype in DTYPES:
            whole = bit_patterns(total, dtype, case)
            own = whole[start : start + length].clone()
            assert same_bits(gather(own, (start, length), total, group), whole), (case, dtype)
            moved, again = own.clone(), own.clone()
            redistribute([moved, again], kept, grown, ranges, rank, group)
            survivors = torch.zeros_like(whole)
            survivors[~grown] = whole[kept]
            assert same_bits(moved, survivors[start : start + length]), (case, dtype)
            assert same_bits(again, moved), "every vector moves alike"
            seen["crossing"] += not torch.equal(survivors[start : start + length], own) and length > 0
    return seen


def test_fragments_of_any_size_on_real_ranks() -> None:
    results = run_ranks(exchange_on_ranks, 3)
    assert results[0]["empty"] >= 3 and results[0]["straddling"] >= 3
    assert all(result["crossing"] > 0 for result in results)


def test_a_lone_ranks_vector_is_not_copied() -> None:
    vector = torch.randn(7)
    assert gather(vector, (0, 7), 7, None) is vector
    assert all_ranges([(0, 7), (0, 3)], None) == [[(0, 7)], [(0, 3)]]
