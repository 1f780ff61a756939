"""The command: a tiny matrix in real processes, killed and gone on with, and rendered again from its JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pretrain.data.manifest import Manifest, manifest_path
from tests.distributed import run_ranks
from tests.tools.ablate import matrices
from tools.ablate import known, plain
from tools.ablate.__main__ import main
from tools.ablate.cell import run as run_cell
from tools.ablate.matrix import load_matrix

ROOT = Path(__file__).parent.parent.parent.parent
BRANCHES = {"sizes": ["tiny"], "bases": ["SMET"], "densities": [0.25], "seeds": [0]}


def start(matrix: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.ablate", str(matrix), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, Path]:
    """Matrix, summary and output of a run that was killed once, when its first cell was done."""
    folder = tmp_path_factory.mktemp("ablate")
    cells = [*matrices.content("")["cells"], BRANCHES]
    matrix, out = matrices.write(folder, cells=cells), folder / "out"
    first = start(matrix, out, "--jobs", "1")
    while not list(out.glob("*/result.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    other, said = start(matrix, out), "is in use by another"
    assert said in other.communicate(timeout=100)[1] and other.returncode == 2
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=100) == 130
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert 1 <= len(finished) < 3
    second = start(matrix, out, "--jobs", "2", "--json")
    said, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())  # not run twice
    return matrix, json.loads(said), out


def test_every_cell_is_in_the_results_with_what_it_measured(done):
    _, said, _ = done
    results = json.loads(Path(said["results"]).read_text())
    assert said["cells"] == 3 and said["failed"] == [] and results["missing"] == []
    runs = {cell["method"]: cell for cell in results["cells"] if cell["kind"] == "run"}
    for cell in runs.values():
        assert [update["step"] for update in cell["updates"]] == [6, 12, 18]
        assert cell["updates"][0]["losses"].keys() == {"-2", "before", "after", "1", "5"}
        assert cell["topology_updates"] == 3 and cell["cpu_seconds"] > 0
        assert 0 < cell["validation_loss"] < 10 and cell["bytes_at_rest"]["measured"] > 0
        assert cell["updates"][0]["losses"]["before"] != cell["updates"][0]["losses"]["after"]
    naive, smet = (
        {row["age"]: row["regrown"] / row["survivors"] for row in runs[method]["changes"]} for method in runs
    )
    assert naive.keys() == smet.keys() == {1, 2, 5}
    assert smet[1] < 0.5 * naive[1]  # W = 6: a regrown weight begins with a sixth of its step


def test_branches_share_the_update_and_the_unchanged_one_is_what_the_run_itself_would_do(done):
    _, said, out = done
    results = json.loads(Path(said["results"]).read_text())
    [cell] = [cell for cell in results["cells"] if cell["kind"] == "branches"]
    assert [branch["step"] for branch in cell["branches"]] == [6, 12]
    for branch in cell["branches"]:
        losses = branch["losses"]
        assert losses.keys() == matrices.VARIANTS.keys() and losses["naive"].keys() == {"0", "1", "3", "4"}
        changed = [losses[name]["0"] for name in losses if name != "no update"]
        assert len(set(changed)) == 1 and losses["no update"]["0"] != changed[0]
        # With its warm-up SMET may still equal "prune only" in the printed digits; naive Adam cannot.
        assert losses["naive"]["4"] not in (losses["prune only"]["4"], losses["kept as it is"]["4"])
    twin = [cell for cell in results["cells"] if cell["kind"] == "run" and cell["method"] == "SMET"][0]
    assert cell["loss_curve"] == twin["loss_curve"]  # branching leaves no trace in the run that is branched from
    kept = cell["branches"][0]["losses"]["kept as it is"]
    assert kept["1"] == twin["updates"][0]["losses"]["1"]


def test_the_page_comes_from_the_json_alone(done, tmp_path: Path):
    _, said, _ = done
    assert main(["render", said["results"], str(tmp_path / "results.md")]) == 0
    assert (tmp_path / "results.md").read_text() == Path(said["page"]).read_text()
    images = {path.name for path in (tmp_path / "images").iterdir()}
    assert {"results-branches.png", "results-update.png", "results-changes.png", "results-curves.png"} <= images


def test_a_finished_matrix_starts_nothing_and_a_changed_one_is_refused(done, capsys: pytest.CaptureFixture[str]):
    matrix, _, out = done
    assert main([str(matrix), "--out", str(out), "--list", "--json"]) == 0
    assert all(row["done"] for row in json.loads(capsys.readouterr().out))
    assert main([str(matrix), "--out", str(out), "--collect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 3
    assert main([str(matrix), "--out", str(out / "elsewhere"), "--collect"]) == 2
    assert "nothing to report" in capsys.readouterr().err
    given = matrix.read_text()
    matrix.write_text(given.replace("seq_length: 16", "seq_length: 16\n    seed: 0"))  # a default, written out
    assert main([str(matrix), "--out", str(out), "--list", "--json"]) == 0
    assert all(row["done"] for row in json.loads(capsys.readouterr().out))
    matrix.write_text(given.replace("steps: 20", "steps: 21"))
    try:
        assert main([str(matrix), "--out", str(out), "--list"]) == 2
    finally:
        matrix.write_text(given)
    assert "with other settings" in capsys.readouterr().err


def test_known_results_are_taken_where_settings_and_text_are_the_same(
    done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    matrix, said, _ = done
    results, out = json.loads(Path(said["results"]).read_text()), tmp_path / "out"
    assert main([str(matrix), "--out", str(out), "--known", said["results"], "--json"]) == 0
    captured = capsys.readouterr()
    assert "3 cells taken from" in captured.err and json.loads(captured.out)["done"] == 3
    assert json.loads((out / "results.json").read_text())["cells"] == results["cells"]
    for number, key in enumerate(("settings", "text")):
        changed = {**results, "cells": [{**results["cells"][0], key: "other"}, *results["cells"][1:]]}
        (tmp_path / "known.json").write_text(json.dumps(changed))

        known.plant(tmp_path / "known.json", partial(load_matrix, matrix), tmp_path / str(number))
        assert "2 cells taken from" in (told := capsys.readouterr().err) and "1 there have other settings" in told


def test_cells_trained_on_another_text_are_not_mixed_with_new_ones(done, capsys: pytest.CaptureFixture[str]):
    matrix, _, out = done
    prefix = matrix.parent / "corpus"
    checksums = {"bin": 64 * "0", "idx": 64 * "1"}
    made = Manifest(
        tokenizer_sha256="", vocab_size=97, eos_id=0, dtype="uint16", documents=10, tokens=20_000, checksums=checksums
    )
    made.write(prefix)  # as if the text had been made anew
    try:
        assert main([str(matrix), "--out", str(out)]) == 2
    finally:
        manifest_path(prefix).unlink()
    said = capsys.readouterr().err
    assert "trained on another text than there is now (20,000 tokens (sha256 000000000000) for train" in said


def test_a_cell_that_fails_is_one_line_and_the_rest_is_done(tmp_path: Path):
    matrix = matrices.write(tmp_path)
    broken = tmp_path / "out" / "tiny-d0.25-set-naive-s0" / "run"
    broken.mkdir(parents=True)
    (broken / "metrics.jsonl").touch()  # somebody else's
    process = start(matrix, tmp_path / "out", "--jobs", "2")
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 1 and "1 of 2 cells done" in said
    lines = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert lines and all("tiny-d0.25-set-naive-s0" in line and "no config.yaml" in line for line in lines)
    assert (tmp_path / "out" / "tiny-d0.25-smet-s0" / "result.json").exists()
    assert "**Not complete.**" in (tmp_path / "out" / "results.md").read_text()


def test_branches_of_another_formula_freeze_whatever_it_keeps(tmp_path: Path):
    run = matrices.content("")["run"]
    run["data"] = {**run["data"], "train": str(tmp_path / "corpus"), "validation": str(tmp_path / "corpus")}
    run["optimizer"] = {"name": "lion", "lr": 0.003}
    run["train"] = {**run["train"], "steps": 8}
    branches = {**matrices.content("")["branches"], "at": [6], "evaluate": [1, 2]}
    matrix = load_matrix(matrices.write(tmp_path, run=run, cells=[BRANCHES], branches=branches))
    [cell] = matrix.cells
    (tmp_path / "cell").mkdir()
    spec = {"labels": cell.labels(), "kind": cell.kind, "measure": cell.measure, "settings": cell.settings}
    (tmp_path / "cell" / "cell.json").write_text(json.dumps(spec))
    [result] = run_ranks(run_cell, 1, tmp_path / "cell")
    [branch] = result["branches"]
    assert branch["losses"]["prune only"]["0"] == branch["losses"]["naive"]["0"]
    assert branch["losses"]["prune only"]["2"] != branch["losses"]["naive"]["2"]


@pytest.mark.slow
def test_two_ranks_of_a_launcher_measure_what_one_process_does(done, tmp_path: Path):
    matrix, said, _ = done
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2 -m"
    process = start(matrix, tmp_path / "out", "--jobs", "1", "--launcher", launcher, "--json")
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    alone, together = (
        {cell["name"]: cell for cell in json.loads(Path(path).read_text())["cells"]}
        for path in (said["results"], json.loads(printed)["results"])
    )
    for name, cell in alone.items():
        other = together[name]
        assert other["ranks"] == 2 and other["validation_loss"] == pytest.approx(cell["validation_loss"], abs=2e-3)
        for row, same in zip(cell.get("changes", []), other.get("changes", []), strict=True):
            assert same == pytest.approx(row, rel=0.02)
        for branch, same in zip(cell.get("branches", []), other.get("branches", []), strict=True):
            assert same["losses"].keys() == branch["losses"].keys()
            assert all(same["losses"][key] == pytest.approx(branch["losses"][key], abs=2e-3) for key in same["losses"])


def test_plain_torch_trains_the_same(done):
    matrix, said, _ = done
    results = json.loads(Path(said["results"]).read_text())
    through_deepspeed = {cell["name"]: cell for cell in results["cells"] if cell["kind"] == "run"}
    for cell in load_matrix(matrix).cells:
        if cell.kind == "run":
            found, expected = plain.run(cell.config(Path("unused")), None), through_deepspeed[cell.name]
            for key in ("validation_loss", "train_loss"):
                assert found[key] == pytest.approx(expected[key], rel=1e-5), key
            assert found["topology_updates"] == expected["topology_updates"] == 3
            assert found["recycled"] == pytest.approx(expected["recycled"], abs=1e-5)
