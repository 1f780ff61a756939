"""The line over sizes: least squares with its interval, drawn no farther than it says something."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.tools.ablate import made_up
from tests.tools.ablate.test_questions import QUESTION, SECTIONS, result, written
from tools.ablate import law, page
from tools.ablate.law import Line
from tools.ablate.matrix import load_matrix
from tools.ablate.view import View

NOISE = (0.004, -0.004, 0.001, -0.001)
NAMES = ("small", "large")
LAW = {"questions": list(NAMES), "methods": ["SMET"]}


def test_a_line_is_that_of_least_squares():
    line = Line.of([(0.0, 1.0), (0.0, 3.0), (1.0, 4.0), (2.0, 5.0), (2.0, 7.0)])
    assert line is not None and line.slope == pytest.approx(2.0) and line.start == pytest.approx(2.0)
    assert line.slope_error == pytest.approx(math.sqrt((1 + 1 + 0 + 1 + 1) / 3 / 4))  # 4: squares of x around its mean
    middle, end = line.half_width(1.0), line.half_width(2.0)
    assert middle == pytest.approx(2.3534 * math.sqrt(4 / 3 / 5), rel=1e-4)  # 2.3534: t of three degrees of freedom
    assert end == pytest.approx(middle * math.sqrt(1 + 5 / 4))


@pytest.mark.parametrize("points", [[], [(1.0, 2.0), (2.0, 3.0)], [(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]])
def test_what_fixes_no_line_gives_none(points: list[tuple[float, float]]):
    assert Line.of(points) is None


@pytest.mark.parametrize("noise, times", [(0.1, law.FARTHEST), (100.0, 1.0)])
def test_it_is_drawn_as_far_as_it_says_something(noise: float, times: float):
    line = Line.of([(x, noise * y) for x in (4.0, 4.5, 5.0) for y in NOISE for _ in range(3)])
    assert line is not None and 10 ** (line.reach() - 5.0) == pytest.approx(times)


def asked(folder: Path) -> dict[str, Any]:
    sizes = {"tiny": {}, "wide": {"model": {"hidden_size": 32}}}
    rows = {size: [{"size": size, "method": "dense"}, {"size": size, "method": "SMET", "density": 0.25}]
            for size in sizes}  # fmt: skip
    questions = {name: {**QUESTION, "asks": f"{name}?", "rows": rows[size]}
                 for name, size in zip(NAMES, sizes, strict=True)}  # fmt: skip
    matrix = load_matrix(written(folder, sizes=sizes, questions=questions, law=LAW)).content
    cells = [
        {**result(method, seed, loss - 0.01 * seed, 0.01), "size": size,
         "density": 1.0 if method == "dense" else 0.25, "active_weights": weights}
        for size, weights, gain in (("tiny", 1000, 0.1), ("wide", 10000, 0.3))
        for method, loss in (("dense", 4.0), ("SMET", 4.0 - gain))
        for seed in (0, 1)
    ]  # fmt: skip
    return {**made_up.results(cells), "matrix": matrix}


def test_the_page_has_slope_and_figure(tmp_path: Path):
    images = page.write(asked(tmp_path), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "the gain grows by 0.200 nats for ten times the weights" in text
    assert "| SMET | 1,000, 10,000 | 4 | -0.2000 |" in text
    assert tmp_path / "images/page-law.png" in images and (tmp_path / "images/page-law.png").exists()


def test_points_are_of_the_questions_that_the_law_names(tmp_path: Path):
    view = View(asked(tmp_path))
    chosen = law.Law(questions=("small",), methods=("SMET",))
    assert law.points(view, chosen, "SMET") == [(3.0, pytest.approx(-0.1))] * 2


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"law": {"questions": ["byte"], "methods": ["SMET"]}}, "law.questions has 'byte' (did you mean 'bytes'?)"),
        ({"law": {"questions": ["bytes"], "methods": []}}, "law.methods is empty"),
        ({"law": {"question": ["bytes"]}}, "law.question"),
        ({"law": {"questions": ["bytes"], "methods": ["dense"]}}, "law.methods has 'dense', which is no row of bytes"),
        (
            {"methods": {**SECTIONS["methods"], "b": {"method": "set", "tuned_as": "dense"}}},
            "methods.b.tuned_as is 'dense' (str), expected a sparse method",
        ),
        (
            {
                "methods": {
                    **SECTIONS["methods"],
                    "b": {"method": "set", "tuned_as": "SMET"},
                    "c": {"method": "set", "tuned_as": "b"},
                }
            },
            "methods.c.tuned_as is 'b' (str), which is tuned as",
        ),
        (
            {"methods": {**SECTIONS["methods"], "other": {"method": "set", "tuned_as": "SME"}}},
            "other.tuned_as is 'SME'",
        ),
    ],
)
def test_what_is_wrong_is_told(wrong: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(Exception) as told:
        load_matrix(written(tmp_path, **wrong))
    assert words in str(told.value)


def test_a_variant_takes_the_rate_of_what_it_varies(tmp_path: Path):
    methods = {**SECTIONS["methods"], "variant": {"method": "smet", "growth": "gradient", "tuned_as": "SMET"}}
    rows = [{"size": "tiny", "method": method, "density": 0.25} for method in ("SMET", "variant")]
    path = written(tmp_path, methods=methods, questions={"how": {**QUESTION, "rows": rows}})
    assert {cell.method for cell in load_matrix(path).cells} == {"SMET"}
    tried = [result("SMET", 9, loss, lr, False) for lr, loss in ((0.01, 4.0), (0.02, 3.0))]
    known = {(cell.method, cell.lr) for cell in load_matrix(path, tried).cells if cell.tuned}
    assert known == {("SMET", 0.02), ("variant", 0.02)}
