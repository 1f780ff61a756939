"""Means, deviations and paired tests."""

from __future__ import annotations

import pytest

from tools.ablate.statistics import Difference, Spread, paired_p, student_p


@pytest.mark.parametrize(
    "t, freedom, p",  # two-sided critical values of printed tables
    [
        (12.706, 1, 0.05), (4.303, 2, 0.05), (9.925, 2, 0.01), (3.182, 3, 0.05), (2.776, 4, 0.05), (4.604, 4, 0.01),
        (2.571, 5, 0.05), (2.228, 10, 0.05), (2.131, 15, 0.05), (2.042, 30, 0.05), (1.697, 30, 0.10),
    ],
)  # fmt: skip
def test_tails_of_student_are_those_of_the_tables(t: float, freedom: int, p: float):
    assert student_p(t, freedom) == pytest.approx(p, rel=2e-3)
    assert student_p(-t, freedom) == student_p(t, freedom)
    assert student_p(0.0, freedom) == pytest.approx(1.0)


def test_seeds_are_compared_in_pairs():
    a = {0: 1.0, 1: 2.0, 2: 3.0, 7: 100.0}
    b = {0: 0.9, 1: 1.89, 2: 2.91, 8: -100.0}
    gap = Difference.of(a, b)
    assert gap is not None and gap.count == 3 and gap.mean == pytest.approx(0.1)
    assert gap.significant and "significant" in gap.verdict() and "not" not in gap.verdict()
    noisy = Difference.of({0: 1.0, 1: -1.0, 2: 0.5}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert noisy is not None and not noisy.significant and "not significant" in noisy.verdict()


def test_one_seed_is_no_test_and_none_no_difference():
    single = Difference.of({0: 1.0}, {0: 0.5})
    assert single is not None and single.p is None and single.verdict() == "one seed, so no test"
    assert Difference.of({0: 1.0}, {1: 1.0}) is None
    assert paired_p([1.0, 1.0, 1.0]) == 0.0 and paired_p([0.0, 0.0]) == 1.0


def test_spreads_say_what_they_are_of():
    assert Spread.of([1.0, None, 3.0]).text(1) == "2.0 ± 1.4"
    assert Spread.of([1.5]).text(1) == "1.5" and Spread.of([None]) is None
