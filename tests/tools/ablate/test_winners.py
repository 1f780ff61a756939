"""Defaults change only where what was tried is surely better, and the page says which comparison decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.load import load_config
from pretrain.config.yaml_text import read_yaml
from tests.tools.ablate import made_up
from tests.tools.ablate.test_questions import result
from tools.ablate import page, winners
from tools.ablate.view import View

BEFORE, TRIED = "1 x 1, init 0.02, b2 0.999", "1 x 1, init 0.02"
METHODS = {TRIED: {"method": "static"}, BEFORE: {"method": "static"}}
ROWS = [{"size": "tiny", "method": name, "density": 0.25} for name in METHODS]


def results(present: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """Losses of beta2 0.999 by seed, over 3.0 and a bit with 0.95."""
    made = made_up.results(
        [result(name, seed, loss, 0.01) for name, losses in ((TRIED, (3.0, 3.1, 3.2)), (BEFORE, present))
         for seed, loss in enumerate(losses)]
    )  # fmt: skip
    questions = {"optimizer-fixed": {"asks": "Which?", "equal": "tokens", "seeds": [0, 1, 2], "rows": ROWS}}
    methods = {**METHODS, BEFORE: {**METHODS[BEFORE], **more}}
    made["matrix"].update(methods=methods, questions=questions, roles={})
    return made


def around(question: str, losses: Mapping[str, float]) -> dict[str, Any]:
    """Three seeds of each method around its loss; of the first they differ a little."""
    first = next(iter(losses))
    made = made_up.results(
        [result(name, seed, loss + 0.001 * seed * (name == first), 0.01) for name, loss in losses.items()
         for seed in range(3)]
    )  # fmt: skip
    rows = [{"size": "tiny", "method": name, "density": 0.25} for name in losses]
    asked = {"asks": "Which?", "equal": "tokens", "seeds": [0, 1, 2], "rows": rows}
    methods = {name: {"method": "static"} for name in losses}
    made["matrix"].update(methods=methods, questions={question: asked}, roles={})
    return made


@pytest.mark.parametrize(
    ("present", "chosen"),
    [((3.1, 3.21, 3.3), {"optimizer": {"beta2": 0.95}}), ((3.1, 3.0, 3.2), {}), ((2.9, 3.01, 3.1), {})],
    ids=["surely better", "not told apart", "surely worse"],
)
def test_a_default_changes_only_for_what_is_surely_better(present: Sequence[float], chosen: dict[str, Any]):
    assert winners.preset([View(results(present))]) == chosen


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (results((3.1, 3.21, 3.3), tuned_as=TRIED), "what stays was run at the other's learning rate"),
        (results((3.1, 3.21, None)), "1 of its seeds are missing or diverged"),
    ],
)
def test_an_unfair_or_unfinished_comparison_changes_nothing(made: dict[str, Any], why: str):
    (decision,) = winners.decisions(View(made))
    assert decision.undecided == why and decision.value == 0.999 and winners.preset([View(made)]) == {}


def test_pages_change_defaults_together():
    one, other = View(results((3.1, 3.21, 3.3))), View(results((3.1, 3.0, 3.2)))
    assert winners.preset([one, other]) == winners.preset([other, one]) == {"optimizer": {"beta2": 0.95}}


def test_of_several_better_values_the_best_is_taken():
    losses = {"1 x 1 SMET": 3.0, "1 x 1 SMET, prune 0.1": 2.9, "1 x 1 SMET, prune 0.4": 2.8}
    made = around("which-update", losses)
    assert [decision.value for decision in winners.decisions(View(made))] == [0.1, 0.4]
    assert winners.preset([View(made)]) == {"sparsity": {"prune_start": 0.4}}


def test_the_rows_of_choices_are_in_the_matrices():
    files = [read_yaml(file) for file in (Path(__file__).parents[3] / "configs" / "ablations").glob("*.yaml")]
    for choice in winners.CHOICES:
        asked = [file["questions"][choice.question] for file in files if choice.question in file.get("questions", {})]
        rows = [{row["method"] for row in question["rows"]} for question in asked]
        assert any({choice.present[0], choice.other[0]} <= methods for methods in rows), choice


def test_the_page_names_the_default_and_its_test(tmp_path: Path):
    page.write(results((3.1, 3.21, 3.3)), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| `optimizer.beta2` | 0.999 | 0.95 | -0.1033 | 0.001 | 3 | **0.95** |" in text
    assert f"- Which? tiny: {TRIED}, d = 0.25 is lowest, and nearest is tiny: {BEFORE}, d = 0.25, 0.103" in text


@pytest.mark.parametrize(
    ("fixed", "exponent"),
    [(3.3, 0.5), (2.7, 0.0)],
    ids=["scaled is better", "fixed stays, and e = 0 is better with it"],
)
def test_a_choice_counts_where_its_rows_are_what_is_used(fixed: float, exponent: float):
    losses = {"1 x 1": 3.0, "1 x 1, e = 0.5": 2.9, "1 x 1, init 0.02": fixed, "1 x 1, init 0.02, e = 0.5": fixed + 0.1}
    made = around("exponent", losses)
    found = {decision.choice.key: decision.value for decision in winners.decisions(View(made))}
    assert found == {"model.initializer": "scaled" if fixed > 3 else "fixed", "sparsity.lr_exponent": exponent}


def test_run_files_with_tiles_permute_as_the_page_says():
    configs = Path(__file__).parents[3] / "configs"
    for path in [*(configs / "tiles").glob("*.yaml"), configs / "quickstart.yaml"]:
        assert load_config(path).sparsity.permute != "none", path
