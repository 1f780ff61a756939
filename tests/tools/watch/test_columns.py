"""Points for a screen: what they say of all rows, and that those of before stay as rows are added."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from tools.watch.columns import MOST, Columns, bucket_size, number, numbers


def filled(rows: int) -> tuple[Columns, list[float]]:
    chance = random.Random(rows)
    losses = [chance.gauss(3, 1) for _ in range(rows)]
    columns = Columns(("loss", "lr"))
    found = [{"step": at + 1, "loss": loss} for at, loss in enumerate(losses)]
    assert columns.extend(found[: rows // 3]) == columns.extend(found[rows // 3 :]) == 0
    return columns, losses


@pytest.mark.parametrize("rows", (1, 5, MOST, MOST + 1, 3 * MOST + 7, 40_000))
def test_each_point_is_the_lowest_highest_and_mean_of_its_rows(rows: int) -> None:
    columns, losses = filled(rows)
    size = columns.size
    found = columns.buckets(0, size)
    parts = [losses[at : at + size] for at in range(0, rows, size)]
    assert len(found["x"]) == len(parts) <= MOST
    assert found["x"] == [min(at + size, rows) for at in range(0, rows, size)]
    assert found["columns"].keys() == {"loss"}, "a column without a value is left out"
    loss = found["columns"]["loss"]
    for name, of in (("low", min), ("high", max), ("mid", lambda part: sum(part) / len(part))):
        if name == "mid" or size > 1:
            assert loss[name] == [pytest.approx(of(part), rel=1e-5) for part in parts]


def test_what_was_sent_stays_and_only_the_rest_is_needed() -> None:
    columns, _ = filled(5000)
    size = columns.size
    before = columns.buckets(0, size)["columns"]["loss"]["mid"]
    assert columns.extend([{"step": step, "loss": 1.0} for step in range(5001, 5200)]) == 0
    assert columns.size == size
    first = 5000 // size
    assert (
        before[:first] + columns.buckets(first, size)["columns"]["loss"]["mid"]
        == (columns.buckets(0, size)["columns"]["loss"]["mid"])
    )


def test_a_window_has_the_points_of_its_steps() -> None:
    columns, losses = filled(40_000)
    begin, end = columns.between(100.5, 300)
    assert (begin, end) == (100, 300)
    found = columns.buckets(0, 1, begin, end)
    assert found["x"] == list(range(101, 301))
    assert found["columns"]["loss"]["mid"] == [pytest.approx(loss, rel=1e-5) for loss in losses[100:300]]
    assert columns.buckets(0, 1, *columns.between(9e9, 9e10)) == {"x": [], "columns": {}}


def test_gaps_are_none_and_counted() -> None:
    columns = Columns(("loss",))
    odd = [1.0, None, "NaN", math.inf, {"a": 1}, 10**400, 2.0]
    assert columns.extend([{"step": step, "loss": loss} for step, loss in enumerate(odd, start=1)]) == 0
    assert columns.buckets(0, 1)["columns"]["loss"]["mid"] == [1.0, None, None, None, None, None, 2.0]
    assert columns.buckets(0, 4)["columns"]["loss"] == {"mid": [1.0, 2.0], "low": [1.0, 2.0], "high": [1.0, 2.0]}
    assert columns.not_finite == {"loss": 5}
    assert columns.extend([{"step": step} for step in (7, 3, None, "8", math.nan)]) == 5
    assert columns.extend([{"step": 8}, {"step": 9, "loss": 3}, {"step": 9, "loss": 4.0}]) == 1
    assert columns.buckets(7, 1)["columns"]["loss"]["mid"] == [None, 3.0] and columns.not_finite == {"loss": 5}


@pytest.mark.parametrize(
    "values", [[1.5, None, 3, math.nan, -math.inf, 1e301], [1, 10**400, -2.0], [True, "4", {}, 5.0], [None], [], [7, 8]]
)
def test_numbers_at_once_are_those_one_by_one(values: list[Any]) -> None:
    assert [repr(value) for value in numbers(values).tolist()] == [repr(number(value)) for value in values]


def test_sizes_are_powers_of_two() -> None:
    assert [bucket_size(rows) for rows in (0, MOST, MOST + 1, 2 * MOST + 1, 100_000)] == [1, 1, 2, 4, 64]
    assert math.isnan(number(True)) and number(3) == 3.0
