"""The command: a quick run in real processes, the page from its JSON, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench import report
from tools.bench.__main__ import main
from tools.bench.figures import PARTS, SPECS

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, str]:
    """JSON, screen and stderr of ``--quick``."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--quick", "--json", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout, done.stderr


def test_every_figure_of_the_registry_is_there_and_only_the_gpus_are_unmeasured(quick):
    result, screen, _ = quick
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert list(figures) == list(SPECS)
    unmeasured = {name for name, figure in figures.items() if figure["value"] is None}
    assert unmeasured == {"dense_optimizer"} | {name for name in SPECS if name.startswith("gpu_")}
    assert all(figures[name]["note"] for name in unmeasured)
    assert set(result["missed"]) == {name for name, figure in figures.items() if figure["met"] is False}
    assert all(name in screen for name in result["missed"])


def test_counted_bytes_do_not_depend_on_speed_and_meet_their_thresholds(quick):
    figures = {figure["name"]: figure for figure in quick[0]["figures"]}
    assert all(figures[name]["met"] for name in ("bytes_sent", "bytes_sent_replicated"))
    sent = quick[0]["bytes_sent"]
    assert sent["replicated"]["masks"] == 0 < sent["SMET"]["masks"]
    assert sent["replicated"]["gradients"] == sent["SMET"]["gradients"] < sent["torch fused AdamW"]["gradients"]
    assert sent["topology update"]["topology"] > 0


def test_where_time_goes_adds_up(quick):
    for shares in quick[0]["where_time_goes"].values():
        assert sum(shares[part] for part in PARTS) == pytest.approx(1.0)
        assert min(shares[part] for part in ("forward", "backward", "optimizer", "gradient reduction")) > 0
    assert (
        quick[0]["where_time_goes"]["SMET"]["expand"] > 0 == quick[0]["where_time_goes"]["torch fused AdamW"]["expand"]
    )


def test_operations_are_told_apart_with_fused_steps_and_without(quick):
    result, _, _ = quick
    sides = ("torch fused AdamW", "SMET")
    assert list(result["operations"]) == [f"{side}, {which}" for side in sides for which in ("plain", "fused")]
    for spent in result["operations"].values():
        assert all(spent[kind] > 0 for kind in ("loss", "attention", "rotation", "norms", "gates", "products"))
    assert "Milliseconds of CPU time in a step by kind of operation" in report.page(result)


def test_smaller_steps_are_laid_beside_the_measured_one(quick):
    result, screen, _ = quick
    assert list(result["batches"]) == ["64", "32"], "tokens per rank: two sequences of 32, then one"
    for found in result["batches"].values():
        assert (
            found["dense_seconds"] > 0 and min(found[key]["median"] for key in ("step", "cpu", "dense_residency")) > 0
        )
    [step] = [figure for figure in result["figures"] if figure["name"] == "step_time"]
    assert result["batches"]["64"]["step"]["median"] == step["value"]
    assert "tokens per rank and step" in screen and 0 < result["weights"]["sparse"] < result["weights"]["all"]


def test_the_step_of_the_quickstart_and_its_linear_layers_are_told(quick):
    result, screen, _ = quick
    own, dense = (result["quickstart"][side] for side in ("SMET", "dense"))
    assert 0 < own["linear_layers"] < 1 and 0 < dense["linear_layers"] < 1
    line = report.quickstart_line(result)
    assert f"takes {own['step_seconds'] / dense['step_seconds']:.3f} of the dense run's" in line
    assert f"Linear layers take {own['linear_layers']:.1%} of the CPU time" in line
    assert line in screen and line in report.page(result)


def test_long_work_shows_its_progress_and_the_machine_is_named(quick):
    result, screen, errors = quick
    assert "runs: 100%" in errors and "engines: 100%" in errors
    assert result["machine"]["processor"] in screen and len(result["load"]) == 2
    assert {case["side"] for case in result["scaling"]} == {"dense", "SMET"}


def test_the_page_is_made_from_the_json_alone(quick, tmp_path: Path):
    source, page = tmp_path / "result.json", tmp_path / "page.md"
    source.write_text(json.dumps(quick[0]))
    assert main(["render", str(source), str(page)]) == 0
    text = page.read_text()
    assert text == report.page(quick[0])
    assert "not measured" in text and "tiny, a test run" in text
    assert all(spec.title in text for spec in SPECS.values())


def test_an_earlier_result_is_laid_beside(quick, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    now, then, page = tmp_path / "now.json", tmp_path / "then.json", tmp_path / "page.md"
    now.write_text(json.dumps(quick[0]))
    earlier = json.loads(now.read_text())
    for side in earlier["where_time_goes"].values():
        side["seconds"] *= 2
    wall = earlier["samples"]["seconds"]["wall"]
    wall["SMET"] = [2 * seconds for seconds in wall["SMET"]]
    del earlier["operations"], earlier["quickstart"]["SMET"]["linear_layers"]  # as an older version wrote it
    then.write_text(json.dumps(earlier))
    assert main(["render", str(now), str(page), "--before", str(then)]) == 0
    text = page.read_text()
    assert text == report.page(quick[0], earlier) and "--before docs/performance-before.json" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| forward |") and "%" not in line)
    dense_before, dense_now, smet_before, smet_now = (int(cell) for cell in row.split("|")[2:6])
    assert abs(dense_before - 2 * dense_now) <= 2 and abs(smet_before - 2 * smet_now) <= 2
    assert " s, 1.00 times as fast; SMET's from " in text and " s, 2.00 times as fast; SMET / dense from " in text
    earlier["options"]["model"] = "350m"
    then.write_text(json.dumps(earlier))
    capsys.readouterr()
    assert main(["render", str(now), str(page), "--before", str(then)]) == 2
    assert "then.json was measured with model 350m, the result with 60m; measure both alike" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--model", "60mm"], "--model is '60mm'"),
        (["--density", "0"], "density"),
        (["--block", "4y4"], "--block is '4y4'"),
        (["--block", "1x7"], "block"),
        (["--ranks", "0"], "--ranks is 0"),
        (["--zero-stage", "4"], "parallel.zero_stage is 4"),
        (["--json", "no/such/folder/result.json"], "--json no/such/folder/result.json"),
        (["--device", "cuda", "--ranks", "99"], "--ranks 99"),
        (["render", "missing.json", "page.md"], "missing.json cannot be read"),
        (["render", __file__, "page.md"], "holds no JSON, expected one JSON object"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and expected in errors[0]
