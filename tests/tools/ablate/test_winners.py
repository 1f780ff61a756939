"""Defaults change only where what was tried is surely better, and the page says which comparison decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.yaml_text import read_yaml
from tests.tools.ablate import made_up
from tests.tools.ablate.test_questions import result
from tools.ablate import answers, page, winners
from tools.ablate.view import View

METHODS = {"1 x 1": {"method": "static"}, "1 x 1, b2 0.999": {"method": "static"}}
ROWS = [{"size": "tiny", "method": name, "density": 0.25} for name in METHODS]


def results(present: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """Losses of beta2 0.999 by seed, over 3.0 and a bit with 0.95."""
    made = made_up.results(
        [result(name, seed, loss, 0.01) for name, losses in (("1 x 1", (3.0, 3.1, 3.2)), ("1 x 1, b2 0.999", present))
         for seed, loss in enumerate(losses)]
    )  # fmt: skip
    questions = {"optimizer": {"asks": "Which?", "equal": "tokens", "seeds": [0, 1, 2], "rows": ROWS}}
    methods = {**METHODS, "1 x 1, b2 0.999": {**METHODS["1 x 1, b2 0.999"], **more}}
    made["matrix"].update(methods=methods, questions=questions, roles={})
    return made


@pytest.mark.parametrize(
    ("present", "chosen"),
    [((3.1, 3.21, 3.3), {"optimizer": {"beta2": 0.95}}), ((3.1, 3.0, 3.2), {}), ((2.9, 3.01, 3.1), {})],
    ids=["surely better", "not told apart", "surely worse"],
)
def test_a_default_changes_only_for_what_is_surely_better(present: Sequence[float], chosen: dict[str, Any]):
    assert winners.preset(View(results(present))) == chosen


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (results((3.1, 3.21, 3.3), tuned_as="1 x 1"), "what stays was run at the other's learning rate"),
        (results((3.1, 3.21, None)), "1 of its seeds are missing or diverged"),
    ],
)
def test_an_unfair_or_unfinished_comparison_changes_nothing(made: dict[str, Any], why: str):
    (decision,) = winners.decisions(View(made))
    assert decision.undecided == why and decision.value == 0.999 and winners.preset(View(made)) == {}


def test_the_rows_of_choices_are_in_the_matrix():
    content = read_yaml(Path(__file__).parents[3] / "configs" / "ablations" / "budget.yaml")
    for choice in winners.CHOICES:
        rows = {row["method"] for row in content["questions"][choice.question]["rows"]}
        assert {choice.present[0], choice.other[0]} <= rows, choice


def test_the_page_names_the_default_and_its_test(tmp_path: Path):
    page.write(results((3.1, 3.21, 3.3)), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| `optimizer.beta2` | 0.999 | 0.95 | -0.1033 | 0.001 | 3 | **0.95** |" in text
    assert "- Which? Nothing beats tiny: 1 x 1, d = 0.25; nearest is" in text


@pytest.mark.parametrize(("rival", "pays"), [(3.05, True), (2.901, False)], ids=["of none", "of a dense rival"])
def test_it_pays_where_no_dense_row_is_as_good(rival: float, pays: bool):
    losses = {"dense": 3.0, "1 x 1": 2.9, "dense, 8-bit Adam": rival}
    density = {"1 x 1": 0.25}
    made = made_up.results(
        [{**result(name, seed, loss + 0.1 * seed + 0.002 * (name == "1 x 1") * (seed % 2), 0.01),
          "density": density.get(name, 1.0)} for name, loss in losses.items() for seed in range(3)]
    )  # fmt: skip
    rows = [{"size": "tiny", "method": name, "density": density.get(name, 1.0)} for name in losses]
    question = {"asks": "Which?", "equal": "bytes", "seeds": [0, 1, 2], "rows": rows}
    methods = {name: {"method": "static" if name == "1 x 1" else "dense"} for name in losses}
    made["matrix"].update(methods=methods, questions={"peers": question}, roles={})
    (text,) = answers.overview(View(made))
    assert text.startswith("**It pays.**" if pays else "**It does not pay, or not surely.** Which? tiny: 1 x 1")


@pytest.mark.parametrize(
    ("fixed", "exponent"),
    [(3.3, 0.5), (2.7, 0.0)],
    ids=["scaled is better", "fixed stays, and e = 0 is better with it"],
)
def test_a_choice_counts_where_its_rows_are_what_is_used(fixed: float, exponent: float):
    losses = {"1 x 1": 3.0, "1 x 1, e = 0.5": 2.9, "1 x 1, init 0.02": fixed, "1 x 1, init 0.02, e = 0.5": fixed + 0.1}
    made = made_up.results(
        [result(name, seed, loss + 0.001 * seed * (name == "1 x 1"), 0.01) for name, loss in losses.items()
         for seed in range(3)]
    )  # fmt: skip
    rows = [{"size": "tiny", "method": name, "density": 0.25} for name in losses]
    question = {"asks": "Which?", "equal": "tokens", "seeds": [0, 1, 2], "rows": rows}
    methods = {name: {"method": "static"} for name in losses}
    made["matrix"].update(methods=methods, questions={"exponent": question}, roles={})
    found = {decision.choice.key: decision.value for decision in winners.decisions(View(made))}
    assert found == {"model.initializer": "scaled" if fixed > 3 else "fixed", "sparsity.lr_exponent": exponent}
