"""Questions of a matrix: rates are tuned first, rows are compared with the first of them, and the page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.errors import ConfigError
from tests.tools.ablate import made_up, matrices
from tools.ablate import answer_page, pool, questions
from tools.ablate.__main__ import main
from tools.ablate.matrix import load_matrix
from tools.ablate.view import View

QUESTION = {
    "asks": "Dense or sparse?", "equal": "bytes", "seeds": [0, 1],
    "rows": [{"size": "tiny", "method": "dense"}, {"size": "tiny", "method": "SMET", "density": 0.25}],
}  # fmt: skip
SMALL = {"size": "tiny", "method": "SMET"}
PEER = {"method": "dense", "peer": {"name": "galore"}}
SECTIONS: dict[str, Any] = {
    "engine": "torch", "tune": {"seed": 9, "rates": [0.01, 0.02]}, "questions": {"bytes": QUESTION},
    "methods": {"dense": {"method": "dense"}, "SMET": {"method": "smet"}},
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    content = matrices.content("corpus", **{**SECTIONS, **changes})
    del content["cells"], content["branches"]
    content.pop("probe" if "probe" not in changes else "", None)
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def result(method: str, seed: int, loss: float | None, lr: float, tuned: bool = True, **more: Any) -> dict[str, Any]:
    made = made_up.run(method, seed, 0.0, lr=lr)
    return {
        **made, "validation_loss": loss, "tuned": tuned, "bytes": {"total": 1000}, "train_cpu_seconds": 5.0,
        "tokens": 2000, "active_weights": 100, "flops_per_token": 600, **more,
    }  # fmt: skip


def test_rows_wait_until_their_rate_is_known(tmp_path: Path) -> None:
    path = written(tmp_path)
    first = load_matrix(path)
    assert len(first.waiting) == 2
    assert [(cell.method, cell.seed, cell.lr) for cell in first.cells] == [
        ("dense", 9, 0.01), ("dense", 9, 0.02), ("SMET", 9, 0.01), ("SMET", 9, 0.02),
    ]  # fmt: skip
    assert all(cell.plain == {} and not cell.tuned for cell in first.cells)
    tried = [result("dense", 9, loss, lr, False) for lr, loss in ((0.01, 4.0), (0.02, None))]
    tried += [result("SMET", 9, loss, lr, False) for lr, loss in ((0.01, 4.0), (0.02, 3.0))]
    half = load_matrix(path, tried[:3])
    assert half.waiting == ["tiny SMET d0.25"] and [c.lr for c in half.cells if c.tuned] == [0.01, 0.01]
    known = load_matrix(path, tried)
    compared = [(cell.method, cell.seed, cell.lr) for cell in known.cells if cell.tuned]
    assert known.waiting == [] and len(known.cells) == 8
    assert compared == [("dense", 0, 0.01), ("SMET", 0, 0.02), ("dense", 1, 0.01), ("SMET", 1, 0.02)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, [0.02, 0.04]),
        ({0.02: 3.0, 0.04: 4.0}, [0.01]),
        ({0.02: 4.0, 0.04: 3.0}, [0.08]),
        ({0.02: 4.0, 0.04: 3.0, 0.08: float("inf")}, []),
        ({0.01: 2.0, 0.02: 3.0, 0.04: 4.0}, []),
    ],
)
def test_rates_are_tried_around_the_best_so_far(losses: dict[float, float], expected: list[float]) -> None:
    assert questions.Tuning(seed=9, rates=(0.01, 0.02, 0.04, 0.08)).following(losses) == expected


def test_a_size_may_take_the_rate_of_another(tmp_path: Path) -> None:
    sizes = {"tiny": {}, "long": {"train": {"steps": 40}, "tuned_at": "tiny"}}
    asked = {**QUESTION, "rows": [{"size": "long", "method": "dense"}]}
    path = written(tmp_path, sizes=sizes, questions={"long": asked})
    assert {cell.size for cell in load_matrix(path).cells} == {"tiny"}
    tried = [result("dense", 9, loss, lr, False) for lr, loss in ((0.01, 4.0), (0.02, 3.0))]
    found = [cell for cell in load_matrix(path, tried).cells if cell.tuned]
    assert [(cell.size, cell.lr) for cell in found] == [("long", 0.02)] * 2
    assert found[0].config(tmp_path).train.steps == 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tune": {"seed": 0, "rates": [0.1]}}, "tune.seed is 0, expected one from 0 on that no question compares"),
        ({"tune": {}}, "tune is missing, expected seed and rates"),
        ({"questions": {"x": {**QUESTION, "equal": "byte"}}}, "equal is 'byte', expected one of bytes, flops"),
        ({"questions": {"x": {**QUESTION, "ask": ""}}}, "questions.x.ask is not a known key (did you mean 'asks'?)"),
        ({"questions": {"x": {**QUESTION, "rows": [{"size": "tiny", "method": "SMETT"}]}}}, "method is 'SMETT'"),
        ({"questions": {"x": {**QUESTION, "rows": [{"size": "tiny", "method": "dense", "density": 0.5}]}}},
         "density is 0.5 with a dense method"),
        ({"sizes": {"tiny": {"tuned_at": "tinier"}}}, "sizes.tiny.tuned_at is 'tinier' (str)"),
        ({"engine": "jax"}, "engine is 'jax' (str), expected one of deepspeed, torch"),
        ({"methods": {**SECTIONS["methods"], "peer": {"method": "dense", "peer": {"name": "galor"}}}}, "peer is"),
        ({"methods": {**SECTIONS["methods"], "peer": {"method": "dense", "peer": {"name": "galore", "ranks": 3}}}},
         "peer.ranks is not known (did you mean 'rank'?)"),
        ({"engine": "deepspeed", "methods": {**SECTIONS["methods"], "p": PEER}},
         "expected the section engine: torch"),
        ({"tune": {"seed": 9, "rates": 0.1}}, "tune.rates is 0.1 (float), expected a list of values"),
        ({"tune": {"seed": None, "rates": [0.1]}}, "tune.seed is missing"),
        ({"tune": {"seed": 9, "rates": [0.1, 0.1]}}, "expected positive numbers, rising"),
        ({"tune": {"seed": 9, "rates": [0.2, 0.1]}}, "expected positive numbers, rising"),
        ({"questions": {"x": {**QUESTION, "seeds": 5}}}, "questions.x.seeds is 5 (int), expected a list"),
        ({"questions": {"x": {**QUESTION, "seeds": "01"}}}, "questions.x.seeds is '01' (str), expected a list"),
        ({"questions": {"x": {**QUESTION, "seeds": [1.5]}}}, "questions.x.seeds[0] is 1.5 (float), expected a whole"),
        ({"questions": {"x": {**QUESTION, "seeds": [-1]}}}, "questions.x.seeds has -1, expected numbers from 0 on"),
        ({"questions": {"x": {**QUESTION, "rows": [{"size": ["a"], "method": "dense"}]}}}, "rows[0].size is"),
        ({"questions": {"x": {**QUESTION, "rows": [{**SMALL, "density": "1"}]}}}, "rows[0].density is '1'"),
        ({"questions": {"x": {**QUESTION, "quick": "yes"}}}, "questions.x.quick is 'yes' (str), expected"),
        ({"questions": {"a/b": QUESTION}}, "questions.a/b: its name becomes a file's"),
        ({"questions": {"x": None}}, "questions.x is None (NoneType), expected a mapping"),
        ({"sizes": {"tiny": None}}, "sizes.tiny is None (NoneType), expected a mapping"),
        ({"methods": [1]}, "methods is [1] (list), expected a mapping"),
        ({"methods": {**SECTIONS["methods"], "p": {**PEER, "peer": {"name": ["galore"]}}}}, "peer is"),
        ({"methods": {**SECTIONS["methods"], "p": {**PEER, "method": "static"}}}, "peer galore, expected dense"),
        ({"methods": {**SECTIONS["methods"], "p": {"method": "static", "then_dense": 8}}}, "then_dense is 8"),
        ({"methods": {**SECTIONS["methods"], "p": {"method": "dense", "then_dense": 0.8}}}, "expected a sparse one"),
        ({"methods": {**SECTIONS["methods"], "p": {**PEER, "peer": {"name": "galore", "rank": -1}}}}, "rank is -1"),
        ({"methods": {**SECTIONS["methods"], "st": {"method": "static", "density": 0.5}}}, "st.density would not"),
        ({"probe": 3}, "probe is 3 (int), expected a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_when_the_file_is_read(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_matrix(written(tmp_path, **changes))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    both = {"bytes": QUESTION, "quickly": {**QUESTION, "quick": True, "rows": QUESTION["rows"][:1]}}
    path = written(tmp_path, questions=both)
    assert {cell.method for cell in load_matrix(path, quick=True).cells} == {"dense"}
    assert {cell.method for cell in load_matrix(path, only=["quickly"]).cells} == {"dense"}
    with pytest.raises(ConfigError, match=r"asks no question 'byte' \(did you mean 'bytes'\?\)"):
        load_matrix(path, only=["byte"])
    with pytest.raises(ConfigError, match="marks no question as quick"):
        load_matrix(written(tmp_path), quick=True)


def view(cells: list[dict[str, Any]]) -> View:
    found = made_up.results(cells)
    found["matrix"].update(SECTIONS)
    return View(found)


@pytest.mark.parametrize(("moved", "told"), [(0, True), (12, False)])
def test_updates_that_replace_nothing_are_told(tmp_path: Path, moved: int, told: bool) -> None:
    cells = [result("dense", 0, 4.0, 0.01), result("SMET", 0, 3.9, 0.02, topology_updates=3, moved=moved)]
    (part,) = [part for part in answer_page.write(view(cells), tmp_path / "page").sections if "**" in part]
    assert ("No update of tiny: SMET, d = 0.25 could replace anything" in part) is told


def test_an_answer_compares_seed_by_seed_at_the_tuned_rates(tmp_path: Path) -> None:
    cells = [result("dense", seed, 4.0 + seed / 10, 0.01) for seed in (0, 1)]
    cells += [result("SMET", seed, 3.9 + seed / 10 + seed / 100, 0.02, bytes={"total": 1100}) for seed in (0, 1)]
    cells += [result("SMET", 9, 1.0, 0.02, False), result("dense", 9, 1.0, 0.01, False)]  # of the tuning
    made = answer_page.write(view(cells), tmp_path / "images" / "page")
    text = "\n".join(made.sections)
    assert "## Dense or sparse?" in text
    assert "**tiny: SMET, d = 0.25 is lowest, 0.095 nats below tiny: dense (2 seeds, p = 0.033: significant).**" in text
    assert "Equal are bytes at rest, but for tiny: SMET, d = 0.25 (1.100 of the first row)." in text
    assert "| tiny: SMET, d = 0.25 | 0.02 | 1 | 0 | 5 | 20.0 | 3 | - | 3.9550 ± 0.0778 | -0.0950 | 0.033 | 2 |" in text
    assert [path.stat().st_size > 5000 for path in made.images] == [True]


def test_the_list_says_what_comes_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path)), "--list", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "later tiny SMET d0.25: its learning rate is not tuned yet" in said and "4 cells, 0 done" in said


def test_rates_that_are_not_tried_any_more_decide_nothing(tmp_path: Path) -> None:
    tried = [result("SMET", 9, loss, lr, False) for lr, loss in ((0.01, 4.0), (0.02, 3.0), (0.04, 1.0))]
    assert questions.best_rates(SECTIONS, questions.tuned(SECTIONS, tried)) == {("tiny", "SMET", 0.25): 0.02}


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = [{"size": "tiny", "method": name, "density": 0.25} for name in ("SMET", "smet")]
    methods = {**SECTIONS["methods"], "smet": {"method": "static"}}
    with pytest.raises(ConfigError) as caught:
        load_matrix(written(tmp_path, methods=methods, questions={"bytes": {**QUESTION, "rows": rows}}))
    assert "two cells would be named tiny-d0.25-smet-lr0.01-s9: of SMET and smet" in caught.value.problems[0]


def test_rates_that_never_come_end_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(pool, "run", lambda *_: [])  # as if all were done, and nothing had been written
    assert main([str(written(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    assert "holds no result at one of tune.rates for tiny dense d1" in capsys.readouterr().err


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "result.json").write_text("{")
    with pytest.raises(Exception, match="cannot be read .*; remove .* to run the cell anew"):
        pool.results_in(tmp_path)
    (tmp_path / "cell" / "result.json").write_text(json.dumps(result("dense", 9, 1.0, 0.01, False)))
    assert questions.best_rates(SECTIONS, questions.tuned(SECTIONS, pool.results_in(tmp_path))) == {}
