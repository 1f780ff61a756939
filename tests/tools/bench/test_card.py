"""The benchmark of one GPU, rehearsed on the CPU, and the page that is made from its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.card import page

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON and the screen of a rehearsal; its tests are those that run here anyway."""
    path = tmp_path_factory.mktemp("card") / "result.json"
    command = [sys.executable, "-m", "tools.bench", "gpu", "--rehearse", "--json", str(path)]
    done = subprocess.run(
        [*command, "--sections", "kernels,formulas,products,training,resume"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_every_section_is_measured_right_and_nothing_is_left_out(rehearsed: tuple[Path, str]):
    result = json.loads(rehearsed[0].read_text())
    assert result["failed"] == {} and result["left_out"] == [] and page.missed(result) == []
    assert list(result["sections"]) == ["kernels", "products", "formulas", "training", "resume"]
    assert all(kernel["right"] for kernel in result["sections"]["kernels"]["kernels"].values())
    formulas = result["sections"]["formulas"]
    assert list(formulas) == ["norm", "gate", "rotation", "loss"] and all(step["right"] for step in formulas.values())
    rows = result["sections"]["products"]["rows"]
    assert len(rows) == 2 and all(row["right"] and row["ratios"]["all"]["median"] > 0 for row in rows)


def test_engines_take_turns_and_peaks_have_a_plan_beside_them(rehearsed: tuple[Path, str]):
    [tiny] = json.loads(rehearsed[0].read_text())["sections"]["training"]
    smet = ["SMET 1 x 1, density 0.25", "SMET 16 x 16, density 0.5"]
    assert list(tiny["steps"]) == ["dense", *smet, "dense, plain formulas"]
    assert tiny["steps"]["dense"]["ratio"] == 1.0 and all(len(times) == 2 for times in tiny["samples"].values())
    assert all(peak["planned"] > 0 for name, peak in tiny["peaks"].items() if "plain" not in name)
    losses = list(tiny["losses"].values())
    assert max(losses) - min(losses) < 0.5, "all start from the same kind of model"


def test_the_resumed_run_equals_the_other_and_its_topology_changed(rehearsed: tuple[Path, str]):
    found = json.loads(rehearsed[0].read_text())["sections"]["resume"]
    assert found["equal"] and found["updates"] == 2
    assert len(found["whole"]["losses"]) == 12 and len(found["resumed"]["losses"]) == 6


def test_the_page_comes_from_the_json_alone_and_says_that_it_is_a_rehearsal(
    rehearsed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, screen = rehearsed
    assert main(["render", str(path), str(tmp_path / "page.md"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missed"] == []
    text = (tmp_path / "page.md").read_text()
    assert text == screen.removesuffix("\n") and "a rehearsal on a CPU" in text
    assert all(heading in text for heading in ("## Whole steps", "## Products over active tiles", "## Resume"))


def test_what_falls_short_is_said(rehearsed: tuple[Path, str]):
    result = json.loads(rehearsed[0].read_text())
    result["rehearsal"] = False
    result["sections"]["kernels"]["kernels"]["Adam"].update(fraction=0.2, right=False)
    result["sections"]["products"]["rows"][0]["right"] = False
    result["sections"]["formulas"]["gate"]["right"] = False
    result["sections"]["resume"]["equal"] = False
    result["sections"]["tests"] = {"passed": 3, "failed": 1, "output": "..."}
    result["failed"]["training"] = "RuntimeError: no"
    result["left_out"] = ["350m, ZeRO-2"]
    text = page.page(result)
    for said in (
        "training failed (RuntimeError: no)", "1 tests", "Adam: wrong results", "Adam: 0.20 of a copy's bandwidth",
        "gate: wrong results", "1 cases of products are wrong", "differs from the uninterrupted", "350m, ZeRO-2",
        "NOT equal", "WRONG",
    ):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--json", "x.json", "--sections", "kernel"], "'kernel' is none of kernels, .*did you mean 'kernels'"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json"),
        (["--json", "x.json"], "no GPU is visible; --rehearse"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import re

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and re.search(expected, errors[0]), errors
