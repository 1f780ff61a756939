"""Prune and grow: exact counts, ties by position, nothing grown that was active before the prune."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smet.config import SmetConfig
from smet.decisions import Decider
from smet.mask import TileGrid, count_active, pack, unpack
from smet.seeds import generator
from smet.topology import (
    TopologyChange,
    grow_by_score,
    grow_random,
    magnitude_mask,
    prune,
    replaced,
    smallest,
    tile_scores,
)
from tests.smet.drawn import random_mask


def change_by_ranges(
    scores: torch.Tensor, bits: torch.Tensor, blocks: int, fraction: float, numbers: list[int], update: int = 0,
    protected: torch.Tensor | None = None, gradients: torch.Tensor | None = None,
) -> TopologyChange:  # fmt: skip
    """What ranges ``numbers`` of a layer decide by L1 of weights ``scores``, growing at random or by ``gradients``."""
    decider = Decider(SmetConfig(growth="random" if gradients is None else "gradient"))
    given = {} if gradients is None else {"gradient": gradients}
    sites = decider.sites("layer", bits, TileGrid(1, blocks), scores.view(-1, 1), given, numbers, update)
    return decider.decide(sites, fraction, protected)


def change_topology(
    scores: torch.Tensor, bits: torch.Tensor, blocks: int, count: int, update: int,
    protected: torch.Tensor | None = None, gradients: torch.Tensor | None = None,
) -> TopologyChange:  # fmt: skip
    """The same of one range, replacing ``count`` blocks."""
    return change_by_ranges(scores, bits, blocks, (count + 0.5) / scores.numel(), [0], update, protected, gradients)


FEW_VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, float("inf")])


@given(st.lists(FEW_VALUES, max_size=60), st.integers(-1, 60))
def test_smallest_takes_exactly_that_many_and_the_first_of_equals(scores: list[float], count: int) -> None:
    count = min(count, len(scores))
    marked = smallest(torch.tensor(scores), count)
    expected = sorted(range(len(scores)), key=lambda i: (scores[i], i))[: max(0, count)]
    assert marked.nonzero().view(-1).tolist() == sorted(expected)


def test_scores_that_are_not_numbers_count_as_largest() -> None:
    scores = torch.tensor([float("nan"), 1.0, float("nan"), 0.5])
    assert smallest(scores, 3).tolist() == [True, True, False, True]
    grown = grow_by_score(torch.ones(4, dtype=torch.bool), 3, torch.tensor([0.0, 2.0, float("nan"), 1.0]))
    assert grown.numel() == 3


@given(st.data())
def test_a_change_keeps_the_count_and_moves_only_what_it_should(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 120))
    active = data.draw(st.integers(1, blocks))
    count = data.draw(st.integers(0, blocks))
    seed = data.draw(st.integers(0, 50))
    bits = random_mask(blocks, active, generator("mask", seed))
    scores = torch.tensor(data.draw(st.lists(FEW_VALUES, min_size=active, max_size=active)))
    protected = torch.tensor(data.draw(st.lists(st.booleans(), min_size=active, max_size=active)))
    by_gradient = data.draw(st.booleans())
    gradients = torch.rand(blocks, generator=generator("gradient", seed)) if by_gradient else None
    use_protection = data.draw(st.booleans())

    change = change_topology(scores, bits, blocks, count, seed, protected if use_protection else None, gradients)

    before, after = unpack(bits, blocks), unpack(change.bits, blocks)
    candidates = int((~protected).sum()) if use_protection else active
    assert change.count == min(count, blocks - active, candidates)
    assert int(after.sum()) == active
    positions_before, positions_after = before.nonzero().view(-1), after.nonzero().view(-1)
    survivors, grown = positions_before[change.kept], positions_after[change.grown]
    assert not before[grown].any(), "grew a block that was active before the prune"
    assert torch.equal(positions_after[~change.grown], survivors), "survivors must keep their order"
    assert not use_protection or change.kept[protected].all()
    if (~change.kept).any():
        free = torch.ones(active, dtype=torch.bool) if not use_protection else ~protected
        spared = scores[change.kept & free]
        assert spared.numel() == 0 or scores[~change.kept].max() <= spared.min()
    if gradients is not None and 0 < change.count < blocks - active:
        left = ~before
        left[grown] = False
        assert gradients[grown].min() >= gradients[left].max()


@given(st.data())
def test_ranges_decide_for_themselves_whoever_holds_them(data: st.DataObject) -> None:
    """Four ranges on one shard, two on each of two, or one on each of four: the same mask in the end."""
    blocks, ranges = 4 * 8 * data.draw(st.integers(1, 6)), 4
    seed, active = data.draw(st.integers(0, 50)), data.draw(st.integers(1, blocks))
    mask = unpack(random_mask(blocks, active, generator(seed)), blocks)
    scores = torch.randint(0, 5, (active,), generator=generator("scores", seed)).float()
    protected = torch.rand(active, generator=generator("protected", seed)) < 0.3
    gradients = torch.rand(blocks, generator=generator("gradient", seed)) if data.draw(st.booleans()) else None

    def decide(shards: int) -> torch.Tensor:
        whole, width, own = [], blocks // shards, ranges // shards
        for shard in range(shards):
            here = slice(shard * width, (shard + 1) * width)
            held = mask[: shard * width].sum(), mask[: (shard + 1) * width].sum()
            change = change_by_ranges(
                scores[held[0] : held[1]], pack(mask[here]), width, 0.4,
                list(range(shard * own, (shard + 1) * own)), 0,
                protected[held[0] : held[1]], None if gradients is None else gradients[here],
            )  # fmt: skip
            assert torch.equal(unpack(change.bits, width).sum(), mask[here].sum())
            whole.append(unpack(change.bits, width))
        return torch.cat(whole)

    alone = decide(1)
    assert torch.equal(decide(2), alone) and torch.equal(decide(4), alone)
    for old, new in zip(mask.chunk(ranges), alone.chunk(ranges), strict=True):
        assert old.sum() == new.sum()
        assert int((new & ~old).sum()) <= int(0.4 * int(old.sum()))


@given(st.data())
def test_what_is_stored_is_the_same_where_tiles_are_exchanged_and_in_general(data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, 200))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    mask = torch.rand(tiles, generator=rng) < data.draw(st.floats(0, 1))
    active, inactive = (some.nonzero().view(-1) for some in (mask, ~mask))
    count = data.draw(st.integers(0, min(active.numel(), inactive.numel())))
    pruned = torch.zeros(active.numel(), dtype=torch.bool)
    pruned[torch.randperm(active.numel(), generator=rng)[:count]] = True
    grown_at = inactive[torch.randperm(inactive.numel(), generator=rng)[:count]]  # in no order
    for one, other in zip(replaced(mask, pruned, grown_at), replaced(mask, pruned, grown_at, stored=mask), strict=True):
        assert torch.equal(one, other)


def test_more_than_are_inactive_replaces_only_as_many_as_are() -> None:
    bits = random_mask(10, 8, generator(0))
    change = change_topology(torch.rand(8), bits, 10, 5, 1)
    assert change.count == 2
    assert count_active(change.bits) == 8
    assert (unpack(change.bits, 10) | unpack(bits, 10)).all(), "both inactive tiles must have been grown"


def test_a_full_layer_cannot_change() -> None:
    bits = random_mask(9, 9, generator(0))
    change = change_topology(torch.rand(9), bits, 9, 3, 1)
    assert change.count == 0
    assert torch.equal(change.bits, bits)


@pytest.mark.parametrize("gradients", [None, torch.arange(20.0)])
def test_replacing_nothing_changes_nothing(gradients: torch.Tensor | None) -> None:
    bits = random_mask(20, 6, generator(0))
    change = change_topology(torch.rand(6), bits, 20, 0, 1, gradients=gradients)
    assert torch.equal(change.bits, bits)
    assert change.kept.all() and not change.grown.any()


def test_protection_of_everything_prunes_nothing() -> None:
    assert not prune(torch.rand(5), 3, torch.ones(5, dtype=torch.bool)).any()


def test_the_same_inputs_give_the_same_mask_and_another_generator_another() -> None:
    bits, scores = random_mask(500, 200, generator(0)), torch.rand(200, generator=generator(1))
    first, again, other = (change_topology(scores, bits, 500, 40, seed).bits for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_growth_by_score_takes_the_first_of_equals() -> None:
    inactive = torch.tensor([True, False, True, True, False, True])
    assert grow_by_score(inactive, 2, torch.tensor([1.0, 9.0, 1.0, 1.0, 9.0, 1.0])).tolist() == [0, 2]
    assert grow_by_score(inactive, 2, torch.tensor([1.0, 9.0, 1.0, 3.0, 9.0, 2.0])).tolist() == [3, 5]


@pytest.mark.parametrize("count", [3, 15])
def test_random_growth_is_uniform_over_what_was_inactive(count: int) -> None:
    inactive = unpack(pack(torch.arange(60) % 3 != 0), 60)
    hits, trials, places = torch.zeros(60), 3000, 40
    for trial in range(trials):
        hits[grow_random(inactive, count, generator("growth", count, trial))] += 1
    assert hits[~inactive].sum() == 0
    chance = count / places
    variance = trials * chance * (1 - chance) * places / (places - 1)
    statistic = float(((hits[inactive] - trials * chance) ** 2).sum() / variance)
    assert 39 - 30 < statistic < 39 + 42  # chi-square of 39 degrees


def test_block_scores_are_l1_norms() -> None:
    values = torch.tensor([1.0, -2.0, 0.5, 0.0, -4.0, 4.0])
    assert tile_scores(values, 2).tolist() == [3.0, 0.5, 8.0]
    assert tile_scores(values, 1).tolist() == [1.0, 2.0, 0.5, 0.0, 4.0, 4.0]


@given(st.integers(1, 300), st.data())
def test_initial_masks_are_exact(blocks: int, data: st.DataObject) -> None:
    active = data.draw(st.integers(0, blocks))
    assert count_active(random_mask(blocks, active, generator(blocks))) == active
    scores = torch.rand(blocks, generator=generator(active))
    kept = unpack(magnitude_mask(scores, active), blocks)
    assert int(kept.sum()) == active
    assert active in (0, blocks) or scores[kept].min() >= scores[~kept].max()
