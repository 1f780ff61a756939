"""The order of samples is a bijection for every size and epoch, and looks random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import SampleOrder, permute


@pytest.mark.parametrize("size", range(1, 130))
def test_every_epoch_visits_every_sample_once(size: int) -> None:
    order = SampleOrder(size, seed=size)
    for epoch in range(4):
        places = [order.locate(epoch * size + position) for position in range(size)]
        assert {e for e, _ in places} == {epoch}
        assert sorted(index for _, index in places) == list(range(size))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2**45), st.integers(0, 2**63), st.integers(0, 1000), st.data())
def test_large_permutations_stay_in_range_and_collide_nowhere(size: int, seed: int, epoch: int, data) -> None:
    positions = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
    images = [permute(position, size, seed, epoch) for position in positions]
    assert all(0 <= image < size for image in images)
    assert len(set(images)) == len(images)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("size", [10**5 + 3, 10**9 + 7, 2**40])
def test_images_and_their_steps_are_uniform(size: int) -> None:
    """Two chi-square tests on 256 bins (255 degrees of freedom: mean 255, standard deviation 22.6)."""
    draws = 20_000
    images = [permute(position, size, seed=1) for position in range(draws)]
    bins = [0] * 256
    steps = [0] * 256
    for before, after in zip(images, images[1:], strict=False):
        bins[after * 256 // size] += 1
        steps[(after - before) % size * 256 // size] += 1
    assert chi_square(bins) < 255 + 5 * 22.6
    assert chi_square(steps) < 255 + 5 * 22.6


def test_epochs_and_seeds_differ() -> None:
    size = 1000
    orders = {tuple(permute(i, size, seed, epoch) for i in range(size)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    first = [permute(i, size, 0, 0) for i in range(size)]
    second = [permute(i, size, 0, 1) for i in range(size)]
    # Two random permutations agree in one place on average.
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_small_permutations_are_all_reached() -> None:
    seen = {tuple(permute(i, 4, seed) for i in range(4)) for seed in range(2000)}
    assert len(seen) == 24
