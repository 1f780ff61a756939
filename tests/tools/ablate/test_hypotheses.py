"""What a matrix says beforehand is checked when it is read, and judged on the page, what does not hold first."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.tools.ablate.made_up import results, run
from tools.ablate import hypotheses
from tools.ablate.statistics import Difference, student_p, student_t
from tools.ablate.view import View

GOOD = {"name": "as good", "size": "tiny", "method": "SMET", "against": "static", "density": 0.25, "mean_at_most": 0.01}


def page(entries: list[dict[str, Any]], gaps: list[float]) -> str:
    cells = [run("static", seed, 4.0) for seed in range(len(gaps))]
    cells += [run("SMET", seed, 4.0 + gap) for seed, gap in enumerate(gaps)]
    found = results(cells)
    found["matrix"]["hypotheses"], found["sha256"] = entries, "0123456789abcdef" * 4
    return "\n".join(hypotheses.section(View(found)))


@pytest.mark.parametrize(
    ("gaps", "limits", "verdict"),
    [
        ([0.004, 0.006], {}, "holds"),
        ([0.02, 0.03], {}, "**missed**"),
        ([-0.03, 0.03], {}, "holds"),
        ([-0.03, 0.03], {"bound_at_most": 0.02}, "**missed**"),
        ([0.004, 0.006], {"bound_at_most": 0.02}, "holds"),
        ([0.004], {"bound_at_most": 0.02}, "not measured"),
        ([], {}, "not measured"),
    ],
)
def test_the_mean_and_the_bound_decide(gaps: list[float], limits: dict[str, float], verdict: str) -> None:
    assert f"| {verdict} |" in page([{**GOOD, **limits}], gaps)


def test_what_is_missed_comes_first_and_the_file_is_named_by_its_digest() -> None:
    text = page([{**GOOD, "name": "held"}, {**GOOD, "name": "failed", "mean_at_most": -1}], [0.0, 0.0])
    assert text.index("failed") < text.index("held") and "0123456789abcdef" in text
    assert page([], [0.0]) == ""


def test_a_wrong_hypothesis_is_refused_with_all_that_is_wrong() -> None:
    content = {"sizes": {"tiny": {}}, "methods": {"SMET": {}, "static": {}}}
    assert hypotheses.problems({**content, "hypotheses": [GOOD]}) == []
    wrong = {**GOOD, "method": "SETT", "mean_at_mots": 1, "density": "much"}
    del wrong["mean_at_most"]
    assert hypotheses.problems({**content, "hypotheses": [GOOD, wrong]}) == [
        "hypotheses[1].density is 'much' (str), expected a finite number",
        "hypotheses[1].mean_at_mots is not a known key (did you mean 'mean_at_most'?)",
        "hypotheses[1].method is 'SETT' (did you mean 'SMET'?)",
    ]
    for key, value, said in (
        ("method", "missing", "is 'missing', expected"),
        ("density", 3.0, "is 3, expected above 0"),
    ):
        (problem,) = hypotheses.problems({**content, "hypotheses": [{**GOOD, key: value}]})
        assert problem.startswith(f"hypotheses[0].{key} {said}")
    assert hypotheses.problems({"hypotheses": 3}) == ["hypotheses: expected a list of mappings"]


def test_the_interval_is_that_of_the_table() -> None:
    for freedom, expected in ((1, 6.314), (2, 2.920), (4, 2.132), (9, 1.833)):
        assert student_t(0.1, freedom) == pytest.approx(expected, abs=1e-3)
        assert student_p(student_t(0.05, freedom), freedom) == pytest.approx(0.05)
    found = Difference.of({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    assert found is not None and found.upper == pytest.approx(2 + 6.314 * math.sqrt(2) / math.sqrt(2), abs=1e-3)
