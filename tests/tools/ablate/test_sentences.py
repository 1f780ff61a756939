"""What a page says of rows is what their numbers allow: against the best rival, with its price and its doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.tools.ablate import made_up
from tests.tools.ablate.test_questions import result
from tools.ablate import sentences
from tools.ablate.answers import answered
from tools.ablate.view import View

DENSE = ("dense", "dense, small")
Losses = Mapping[str, Sequence[float | None]]


def asked(losses: Losses, equal: str = "bytes", **more: Mapping[str, Any]) -> View:
    """Rows by their method with losses by seed, and more of each one's cells; three rates might have been tried."""
    cells = [
        {**result(name, seed, loss, 0.02, **more.get(name, {})), "density": 1.0 if name in DENSE else 0.25}
        for name, some in losses.items() for seed, loss in enumerate(some)
    ]  # fmt: skip
    rows = [{"size": "tiny", "method": name, "density": 1.0 if name in DENSE else 0.25} for name in losses]
    question = {"asks": "Which?", "equal": equal, "seeds": [0, 1, 2], "rows": rows}
    made = made_up.results(cells)
    methods = {name: {"method": "dense" if name in DENSE else "static"} for name in losses}
    tune = {"seed": 9, "rates": [0.01, 0.02, 0.04]}
    made["matrix"].update(methods=methods, questions={"which": question}, roles={}, tune=tune)
    return View(made)


def said(losses: Losses, **more: Any) -> str:
    view = asked(losses, **more)
    (text,) = sentences.overview(answered(view), view.dense_methods)
    return text


def notes(view: View) -> str:
    ((question, rows),) = answered(view).items()
    return " ".join(sentences.conditions(question, rows))


def test_a_sparse_model_is_held_against_the_best_dense_one():
    text = said({"dense": [4.0, 4.1, 4.2], "dense, small": [3.5, 3.6, 3.71], "1 x 1": [3.4, 3.5, 3.6]})
    assert text.startswith("**It pays.** Which? tiny: 1 x 1, d = 0.25 is lowest, 0.103 nats below tiny: dense, small (")


@pytest.mark.parametrize(
    ("sparse", "verdict"),
    [([3.5, 3.61, 3.7], "It pays"), ([4.5, 4.61, 4.7], "It does not pay"), ([3.9, 4.2, 4.3], "It is not sure to pay")],
)
def test_one_of_three_verdicts(sparse: list[float | None], verdict: str):
    assert said({"dense": [4.0, 4.1, 4.2], "1 x 1": sparse}).startswith(f"**{verdict}.** Which? tiny: ")


@pytest.mark.parametrize("losses", [{"dense": [4.0, 4.1]}, {"dense": [4.0, 4.1], "dense, small": [3.0, 3.2]}])
def test_there_is_no_verdict_without_a_sparse_row(losses: Losses):
    assert said(losses).startswith("Which? ")


def test_what_cannot_be_told_apart_is_named_and_so_is_the_price():
    losses = {"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, 3.61, 3.7], "16 x 16": [3.51, 3.6, 3.71]}
    text = said(losses, **{"1 x 1": {"train_cpu_seconds": 10.0}})
    assert "significant), in 2.00 times its time; it is not told apart from tiny: 16 x 16, d = 0.25." in text


def test_what_is_lowest_is_so_over_seeds_that_all_have():
    text = said({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, None, None], "16 x 16": [3.6, 3.0, 3.0]})
    assert "tiny: 1 x 1, d = 0.25 is lowest, 0.500 nats below tiny: dense (one seed, so no test)" in text
    view = asked({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, None, None]})
    assert "2 of 3 runs of tiny: 1 x 1, d = 0.25 diverged and are not in its mean." in notes(view)


def test_a_first_row_that_is_lowest_has_a_nearest():
    text = said({"1 x 1": [3.0, 3.1, 3.2], "16 x 16": [3.3, 3.4, 3.51]})
    assert text.startswith("Which? tiny: 1 x 1, d = 0.25 is lowest, and nearest is tiny: 16 x 16, d = 0.25, 0.303 nats")
    assert said({"1 x 1": [3.0], "16 x 16": [None]}).endswith("only tiny: 1 x 1, d = 0.25 has a loss.")


def test_a_rate_at_the_end_of_the_list_is_said():
    view = asked({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, 3.61, 3.7]})
    view.matrix["tune"]["rates"] = [0.02, 0.04, 0.08]
    (text,) = sentences.overview(answered(view), view.dense_methods)
    assert "the last rate that was tried is the best of tiny: 1 x 1, d = 0.25 and of tiny: dense" in text


def test_two_questions_about_the_same_rows_are_one_line():
    view = asked({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, 3.61, 3.7]})
    view.matrix["questions"]["again"] = {**view.matrix["questions"]["which"], "asks": "And of FLOPs?", "equal": "flops"}
    (text,) = sentences.overview(answered(view), view.dense_methods)
    assert text.startswith("**It pays.** Which? And of FLOPs? tiny: 1 x 1")


@pytest.mark.parametrize(("mean", "still"), [(0.25, True), (0.4, False)])
def test_updates_by_which_density_falls_change_something(mean: float, still: bool):
    own = {"GMP": {"topology_updates": 3, "moved": 0, "mean_density": mean}}
    view = asked({"1 x 1": [4.0, 4.1, 4.2], "GMP": [3.5, 3.61, 3.7]}, **own)
    assert ("No update of tiny: GMP, d = 0.25 could replace anything" in notes(view)) is still


def test_rows_under_another_load_are_told():
    own = {"dense": {"train_seconds": 5.0}, "1 x 1": {"train_seconds": 9.0}}
    view = asked({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, 3.61, 3.7]}, "seconds", **own)
    assert "the clock's was 1.00 to 1.80 times that" in notes(view)


def test_a_row_of_a_fixed_rate_has_it_in_its_name_and_others_where_theirs_is_from():
    view = asked({"dense": [4.0, 4.1, 4.2], "1 x 1": [3.5, 3.61, 3.7]})
    view.matrix["sizes"] = {"tiny": {"tuned_at": "short"}, "short": {"train": {"steps": 5}}}
    view.matrix["methods"]["1 x 1"]["tuned_as"] = "16 x 16"
    view.matrix["questions"]["which"]["rows"].append({"size": "tiny", "method": "dense", "lr": 0.02})
    ((_, rows),) = answered(view).items()
    assert [row.name for row in rows] == ["tiny: dense", "tiny: 1 x 1, d = 0.25", "tiny: dense, lr 0.02"]
    assert [row.rate_of for row in rows] == [
        "tuned in 5 of 20 steps", "that of 16 x 16, tuned in 5 of 20 steps", "not tuned",
    ]  # fmt: skip
