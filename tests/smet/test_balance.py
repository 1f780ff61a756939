"""Balanced masks: equal rows and columns of tiles at first, by draw or by scores, and after every update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import smet
from smet import ConfigError, SmetConfig, sparse_layers, sparsify
from smet.balance import beyond_first, chosen, dealt, off_balance, row_degrees, uneven
from smet.convert import Piece
from smet.mask import pack, unpack
from smet.seeds import generator
from smet.swaps import swapped
from smet.topology import smallest
from tests.smet.test_controller import Run

SIZES = st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 7), st.integers(1, 14), st.floats(0, 1), st.integers(0, 9))
"""Ranges, rows of each, columns, density, seed."""


def spread(counts: torch.Tensor) -> int:
    return int(counts.max() - counts.min())


def draws(rows: int, cols: int, active: int, ranges: int, seed: int) -> list[torch.Tensor]:
    """A random mask, one by scores, and one by scores of which many are equal."""
    scores = torch.rand(rows * cols, generator=generator(seed)) * torch.arange(1, cols + 1).repeat(rows)
    return [
        dealt(rows, cols, active, ranges, generator(seed)),
        chosen(scores, rows, cols, active, ranges),
        chosen(scores.floor(), rows, cols, active, ranges),
    ]


@given(SIZES)
def test_first_masks_are_exact_and_equal_in_rows_and_columns(
    sizes: tuple[int, int, int, float, int],
) -> None:
    ranges, own, cols, density, seed = sizes
    rows = ranges * own
    active = max(1, round(density * rows * cols))
    for mask in draws(rows, cols, active, ranges, seed):
        grid = mask.view(rows, cols)
        assert int(mask.sum()) == active and mask.dtype == torch.bool
        assert torch.equal(grid.sum(1), row_degrees(rows, active)) and spread(grid.sum(1)) <= 1
        assert spread(grid.sum(0)) <= 1 and all(spread(part.sum(0)) <= 1 for part in grid.split(own))
        assert active < max(rows, cols) or (grid.any(0).all() and grid.any(1).all())
    assert torch.equal(draws(rows, cols, active, ranges, seed)[0], draws(rows, cols, active, ranges, seed)[0])


def test_any_range_of_rows_has_a_count_that_follows_from_the_density() -> None:
    degrees = row_degrees(48, 101)
    assert [int(part.sum()) for part in degrees.split(12)] == [25, 25, 25, 26]
    assert [int(part.sum()) for part in degrees.split(24)] == [50, 51]


def test_scores_decide_as_far_as_balance_allows() -> None:
    scores = torch.rand(64 * 32, generator=generator(0)) * torch.linspace(0.5, 1.5, 32).repeat(64)
    best = scores.sort(descending=True).values[:512].sum()
    by_score, by_chance = chosen(scores, 64, 32, 512, 1), dealt(64, 32, 512, 1, generator(1))
    assert scores[by_score].sum() > 0.85 * best > 1.5 * scores[by_chance].sum()
    rising = torch.arange(6.0).view(2, 3).repeat(3, 1).view(-1)  # every row would take the last column
    assert chosen(rising, 6, 3, 6, 1).view(6, 3).sum(0).tolist() == [2, 2, 2]


@given(SIZES, st.floats(0, 1), st.booleans())
def test_swaps_keep_all_degrees_and_count_what_stays(
    sizes: tuple[int, int, int, float, int], fraction: float, by_scores: bool
) -> None:
    ranges, own, cols, density, seed = sizes
    rows, random = ranges * own, generator(seed)
    mask = torch.zeros(rows * cols, dtype=torch.bool)  # of any degrees: old masks keep theirs
    mask[torch.randperm(mask.numel(), generator=random)[: max(1, round(density * rows * cols))]] = True
    active = int(mask.sum())
    asked = torch.zeros(active, dtype=torch.bool)
    asked[torch.randperm(active, generator=random)[: min(round(fraction * active), mask.numel() - active)]] = True
    inactive = (~mask).nonzero().view(-1)
    pruned, grown, stay = swapped(mask, cols, asked, random, inactive.flip(0) if by_scores else None)
    assert int(pruned.sum()) + stay == int(asked.sum()) and not (pruned & ~asked).any()
    assert grown.numel() == grown.unique().numel() == int(pruned.sum()) and not mask[grown].any()
    after = mask.clone()
    after[mask.nonzero().view(-1)[pruned]] = False
    after[grown] = True
    for dim in (0, 1):
        assert torch.equal(after.view(rows, cols).sum(dim), mask.view(rows, cols).sum(dim))


def random_mask(rows: int, cols: int, density: float, seed: int) -> torch.Tensor:
    mask = torch.zeros(rows * cols, dtype=torch.bool)
    mask[torch.randperm(mask.numel(), generator=generator(seed))[: max(1, round(density * rows * cols))]] = True
    return mask


def moved_towards(mask: torch.Tensor, cols: int, fraction: float, seed: int, by_scores: bool) -> torch.Tensor:
    """The mask after an update that replaces a ``fraction`` of its tiles, and moves it towards balance."""
    random, active = generator(seed), int(mask.sum())
    scores = beyond_first(torch.rand(active, generator=random), mask, cols)
    asked = smallest(scores, min(round(fraction * active), mask.numel() - active))
    best = (~mask).nonzero().view(-1).flip(0) if by_scores else None
    pruned, grown, stay = swapped(mask, cols, asked, random, best, towards=True)
    assert int(pruned.sum()) + stay == int(asked.sum()) and not (pruned & ~asked).any()
    assert grown.numel() == grown.unique().numel() == int(pruned.sum()) and not mask[grown].any()
    after = mask.clone()
    after[mask.nonzero().view(-1)[pruned]] = False
    after[grown] = True
    return after


@settings(max_examples=40)
@given(SIZES, st.floats(0, 1), st.booleans())
def test_no_row_or_column_comes_to_lie_further_off_balance(
    sizes: tuple[int, int, int, float, int], fraction: float, by_scores: bool
) -> None:
    _, rows, cols, density, seed = sizes
    mask = random_mask(rows, cols, density, seed)
    for update in range(2):
        after = moved_towards(mask, cols, fraction, 100 * seed + update, by_scores)
        for dim in (0, 1):
            before, now = (off_balance(one.view(rows, cols).sum(dim)) for one in (mask, after))
            assert (now.abs() <= before.abs()).all() and (now * before >= 0).all()
            assert bool(before.any()) == (spread(mask.view(rows, cols).sum(dim)) > 1)
        assert uneven(after, cols) <= uneven(mask, cols)
        mask = after


@pytest.mark.parametrize("by_scores", [False, True])
def test_masks_come_to_balance_within_a_few_updates_and_stay(by_scores: bool) -> None:
    mask = random_mask(32, 48, 0.1, 3)
    found = [uneven(mask, 48)]
    for update in range(8):
        mask = moved_towards(mask, 48, 0.1, update, by_scores)
        found.append(uneven(mask, 48))
    assert found == sorted(found, reverse=True) and found[0] > 40 and found[1] < found[0] and found[-1] == 0
    degrees = mask.view(32, 48).sum(1)
    again = moved_towards(mask, 48, 0.2, 99, by_scores).view(32, 48).sum(1)
    assert torch.equal(again, degrees), "who loses a tile in balance has one again"


def test_what_rows_and_columns_have_too_many_of_goes_first_by_its_score() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).bool().view(-1)  # shares: 1 or 2
    scores = torch.tensor([5.0, 6, 4, 1, 2, 3])  # of the row with three the last is the smallest
    assert beyond_first(scores, mask, 4).tolist() == [4, 5, 3 - 6, 0 - 6, 1, 2], (
        "a column gives what the empty one lacks"
    )
    even = dealt(4, 4, 6, 1, generator(0))
    assert beyond_first(scores, even, 4).tolist() == [4, 5, 3, 0, 1, 2]


def test_empty_rows_and_columns_are_filled_first() -> None:
    mask = random_mask(16, 16, 0.2, 0).view(16, 16)
    mask[:, 3] = mask[5] = False
    after = moved_towards(mask.view(-1), 16, 0.2, 1, by_scores=False).view(16, 16)
    assert after[5].any() and after[:, 3].any() and int(after.sum()) == int(mask.sum())


def test_what_can_be_moved_is_moved_and_the_best_places_go_first() -> None:
    mask = dealt(40, 30, 300, 1, generator(0))
    asked = torch.arange(300) % 5 == 0
    scores = torch.rand(1200, generator=generator(1))
    inactive = (~mask).nonzero().view(-1)
    best = inactive[scores[inactive].argsort(descending=True)]
    _, by_score, stay = swapped(mask, 30, asked, generator(2), best)
    _, by_chance, stays = swapped(mask, 30, asked, generator(2))
    assert stay == stays == 0 and by_score.numel() == by_chance.numel() == 60
    assert scores[by_score].mean() > 0.75 > scores[by_chance].mean() + 0.1
    assert best[0] in by_score or (mask.view(40, 30)[best[0] // 30].sum() == 0)
    again = swapped(mask, 30, asked, generator(2))[1]
    assert torch.equal(again, by_chance)


def test_a_lone_tile_has_nobody_to_exchange_with() -> None:
    mask = torch.eye(4, dtype=torch.bool).view(-1)
    pruned, grown, stay = swapped(mask, 4, torch.tensor([False, True, False, False]), generator(0))
    assert (int(pruned.sum()), grown.numel(), stay) == (0, 0, 1)


@pytest.mark.parametrize("growth", ["random", "gradient", "momentum", "tests.smet.own_criteria:mixed"])
def test_every_growth_keeps_the_degrees(growth: str) -> None:
    own = {"block": (2, 2), "growth": growth, "prune_schedule": "constant", "prune_start": 0.4, "topology_ranges": 1}
    run = Run(density=0.4, **own)
    for _ in range(3):
        before = [run.mask(layer).view(layer.grid.shape) for layer in run.layers]
        report = run.until_update()
        after = [run.mask(layer).view(layer.grid.shape) for layer in run.layers]
        assert report.pruned == report.grown > 0
        assert report.pruned + report.unmoved == sum(int(0.4 * layer.active) for layer in run.layers)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old.sum(0), new.sum(0)) and torch.equal(old.sum(1), new.sum(1))


@pytest.mark.parametrize("growth", ["random", "gradient", "tests.smet.own_criteria:mixed"])
def test_masks_that_were_not_balanced_are_brought_towards_it(growth: str) -> None:
    own = {"block": (1, 2), "growth": growth, "prune_schedule": "constant", "prune_start": 0.2, "topology_ranges": 2}
    run = Run(density=0.4, balance="towards", **own)
    for layer in run.layers:  # as loaded from before
        bits = random_mask(*layer.grid.shape, 0.4, 7)
        assert int(bits.sum()) == layer.active
        run.controller.bank.write(layer, pack(bits))
    counts = [run.until_update().uneven for _ in range(6)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] <= 1
    assert counts[-1] == sum(
        uneven(half, layer.grid.shape[1]) for layer in run.layers for half in run.mask(layer).chunk(2)
    )
    assert Run(density=0.4, **own).until_update().uneven == 0, "counted where masks move towards balance"


def test_ranges_see_their_own_rows_and_keep_their_columns() -> None:
    parts = Run(density=0.4, block=(1, 2), topology_ranges=2, prune_schedule="constant", prune_start=0.5)
    before = [parts.mask(layer).view(layer.grid.shape) for layer in parts.layers]
    assert parts.until_update().grown > 0
    for layer, old in zip(parts.layers, before, strict=True):
        new = parts.mask(layer).view(layer.grid.shape)
        for one, other in zip(old.chunk(2), new.chunk(2), strict=True):
            assert torch.equal(one.sum(0), other.sum(0)) and spread(other.sum(0)) <= 1


def masks(**settings: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32)), quiet=True, **settings).model
    return {n: unpack(la.packed_mask(), la.grid.tiles).view(la.grid.shape) for n, la in sparse_layers(model).items()}


@pytest.mark.parametrize("how", ["random", "magnitude"])
def test_auto_means_tiles_larger_than_one_weight(how: str) -> None:
    for balance, block, equal in (("auto", (4, 4), True), ("auto", (1, 1), False), ("always", (1, 1), True),
                                  ("towards", (1, 1), True), ("never", (4, 4), False)):  # fmt: skip
        found = masks(density=0.3, block=block, balance=balance, mask_init=how)
        assert all(spread(mask.sum(0)) <= 1 and spread(mask.sum(1)) <= 1 for mask in found.values()) == equal
    assert SmetConfig(block=(4, 4)).prune_start == 0.05 and SmetConfig().prune_start == 0.2
    assert SmetConfig(block=[4, 4], prune_start=0.3).prune_start == 0.3


def test_snip_and_synflow_are_balanced_too() -> None:
    inputs = torch.randn(5, 64, generator=generator(0))
    for how, loss in (("snip", lambda m: m(inputs).pow(2).mean()), ("synflow", lambda m: m(inputs.abs()).sum())):
        for mask in masks(density=0.3, block=(4, 4), mask_init=how, loss=loss).values():
            assert spread(mask.sum(0)) <= 1 and spread(mask.sum(1)) <= 1


def test_shards_are_parts_of_the_same_masks() -> None:
    whole = masks(density=0.3, block=(4, 4), topology_ranges=2)["0"]
    for shard in range(2):
        model = nn.Sequential(nn.Linear(64, 24))
        piece = Piece(shard, 2, {"0": 0.3})
        sparsify(model, SmetConfig(density=0.3, block=(4, 4), topology_ranges=2), piece=piece, quiet=True)
        layer = model.get_submodule("0")
        assert torch.equal(unpack(layer.packed_mask(), layer.grid.tiles).view(layer.grid.shape), whole.chunk(2)[shard])


def test_what_cannot_be_balanced_is_refused_with_what_can() -> None:
    expected = (
        r"block is \[16, 16\], expected tiles so small that every row and every column of them has an active one: 0 has"
        r" 1 active for 3 x 4, as have too few 2 layers in all; the largest that fits is \[2, 4\]; or raise the"
        r" density, or set balance 'never'"
    )
    with pytest.raises(ConfigError, match=expected):
        masks(density=0.1, block=(16, 16))
    assert masks(density=0.1, block=(2, 4)) and masks(density=0.1, block=(16, 16), balance="never")
    with pytest.raises(ConfigError, match=r"topology_ranges is 5, expected ranges of whole rows of tiles: 0 has 12"):
        masks(density=0.3, block=(4, 4), topology_ranges=5)


def test_starved_rows_and_columns_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    report = smet.sparsify(model, density=0.1, block=(16, 16), balance="never")
    (told,) = (line for line in report.warnings if "rows" in line)
    assert told.startswith("2 rows and 3 columns of tiles have no active tile, in 1 of 1 layers (in 0: 2 and 3)")
    assert f"warning: {told}" in caplog.text
    assert not smet.sparsify(nn.Sequential(nn.Linear(64, 48)), density=0.4, block=(8, 8), quiet=True).warnings
