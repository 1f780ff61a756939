"""Random numbers that depend on their purpose alone, and are uniform."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smet.seeds import generator, sample_without_replacement


def test_a_purpose_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = torch.rand(4, generator=generator(3, "grow", "layers.0", 7))
    torch.manual_seed(99)
    torch.rand(17)
    assert torch.equal(torch.rand(4, generator=generator(3, "grow", "layers.0", 7)), first)


def test_purposes_do_not_run_into_each_other() -> None:
    purposes = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (1, 23), (12, 3), ("a", "b", "c")]
    draws = {torch.randint(2**62, (1,), generator=generator(*purpose)).item() for purpose in purposes}
    assert len(draws) == len(purposes)


@given(st.integers(0, 400), st.data())
def test_samples_are_distinct_ascending_and_in_range(population: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, population))
    drawn = sample_without_replacement(population, count, generator(data.draw(st.integers(0, 9))))
    assert drawn.dtype == torch.int64
    assert drawn.numel() == count
    assert (drawn.diff() > 0).all()
    assert count == 0 or (drawn[0] >= 0 and drawn[-1] < population)


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="cannot draw 4 distinct numbers from 3"):
        sample_without_replacement(3, 4, generator(0))


@pytest.mark.parametrize("count", [2, 9, 10, 13, 28])
def test_every_position_is_drawn_equally_often(count: int) -> None:
    """Chi-square over 30 positions; counts on both sides of a third use different methods."""
    population, trials, rng = 30, 4000, generator("uniform", count)
    hits = torch.zeros(population)
    for _ in range(trials):
        hits[sample_without_replacement(population, count, rng)] += 1
    chance = count / population
    variance = trials * chance * (1 - chance) * population / (population - 1)  # drawing without replacement
    statistic = float(((hits - trials * chance) ** 2).sum() / variance)
    assert 29 - 25 < statistic < 29 + 35  # chi-square of 29 degrees: P(< 4) and P(> 64) are below 2e-4


@pytest.mark.parametrize("count", [2, 9])
def test_pairs_are_drawn_equally_often(count: int) -> None:
    """Uniform over subsets, not only over positions."""
    population, trials, rng = 12, 6000, generator("pairs", count)
    together = torch.zeros(population, population)
    for _ in range(trials):
        drawn = sample_without_replacement(population, count, rng)
        together[drawn.unsqueeze(1), drawn] += 1
    pairs = together[torch.triu(torch.ones(population, population), 1).bool()]
    expected = trials * count * (count - 1) / (population * (population - 1))
    assert (pairs - expected).abs().max() < 5 * expected**0.5
