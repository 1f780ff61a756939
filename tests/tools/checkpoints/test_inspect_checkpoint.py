"""inspect_checkpoint tells what a run did, and finds any damage."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import CheckpointError
from smet.optim import FORMULAS, find
from tests.tools.checkpoints.models import newest, read_state, read_vectors
from tools import inspect_checkpoint
from tools.checkpoints.reader import Checkpoint
from tools.inspect_checkpoint import describe, main

ROOT = Path(__file__).resolve().parents[3]


def report_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(path), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize("name", ["grouped", "blocks", "partly", "tensor"])
def test_it_tells_what_the_run_did(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(runs / name, capsys)
    [update] = [json.loads(line) for line in (runs / name / "topology.jsonl").read_text().splitlines()]
    assert report["checkpoint"] == str(newest(runs / name)) and report["verified"] is True
    assert (report["step"], report["topology_updates"], report["consumed_samples"]) == (6, 1, 48)
    if name != "tensor":  # whose rank 0 counts its own shard
        assert report["density"] == pytest.approx(update["density"])
    degree = 2 if name == "tensor" else 1
    sizes = {"world_size": 2, "data": 2 // degree, "tensor": degree, "pipeline": 1, "zero_stage": 2}
    assert report["layout"] == sizes
    block = report["block"][0] * report["block"][1]
    born = [row for row in report["ages"] if row["born"]]
    assert [(row["born"], row["age"]) for row in born] == [(4, 2)]
    vectors = read_vectors(newest(runs / name))
    regrown = sum(int((births > 0).sum()) for key, births in vectors.items() if key.endswith("/birth"))
    assert born[0]["weights"] == regrown > 0
    if name != "tensor":
        assert regrown == update["grown"] * block
    assert sum(row["share"] for row in report["ages"]) == pytest.approx(1.0)
    active = sum(v.numel() for key, v in vectors.items() if key.removesuffix(".values") in report["density"])
    assert sum(row["weights"] for row in report["ages"]) == 0 or active >= 0
    sizes = report["bytes"]
    assert sizes["moments"] == 2 * sizes["weights"] == 8 * report["parameters_stored"]
    assert sizes["total"] == sum(
        path.stat().st_size for path in newest(runs / name).iterdir() if path.name != "manifest.json"
    )
    assert sizes["masks"] == sum(v.numel() for key, v in vectors.items() if key.endswith(".mask"))


def test_a_dense_run_has_one_age_and_no_masks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(runs / "dense", capsys)
    assert set(report["density"].values()) == {1.0}
    assert [(row["born"], row["age"], row["share"]) for row in report["ages"]] == [(0, 6, 1.0)]
    assert report["bytes"]["masks"] == report["bytes"]["ages"] == 0


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_checkpoints_of_every_formula_are_read(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(runs / ("grouped" if name == "adamw" else name), capsys)
    assert report["bytes"]["moments"] == find("optimizer.name", name).width() * report["parameters_stored"]


def test_moments_of_another_kind_than_the_formula_keeps_are_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "adamw_8bit", tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    state = read_state(checkpoint)
    state["config"]["optimizer"]["name"] = "adamw"
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"exp_avg \(\d+ elements, torch.int8\), which the settings in its"):
        Checkpoint(checkpoint, check=False)


def test_a_person_reads_it_on_one_screen(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "grouped")]) == 0
    text = capsys.readouterr().out
    assert "step-00000006: whole (all checksums match)" in text
    assert "by 2 ranks (data 2, tensor 1, pipeline 1, ZeRO-2); torch " in text
    assert "model.layers.*.mlp.up_proj: 0.29" in text
    assert "  4: " in text and "at the start" in text and "masks" in text
    report = report_of(runs / "grouped", capsys)
    report["ages"] = [{"born": 10 * n, "age": 0, "weights": 3, "share": 1 / 256} for n in range(256)]
    lines = describe(report).splitlines()
    ages = [line for line in lines if line.endswith("%)")]
    assert len(lines) < 25 and len(ages) == inspect_checkpoint.LINES
    assert sum(int(line.split(": ")[1].split(" ")[0]) for line in ages) == 3 * 256


def test_every_damage_is_found_and_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file of a checkpoint: a bit changed at random places, cut off, removed."""
    rng = random.Random(0)
    source = newest(runs / "grouped")
    names = sorted(path.name for path in source.iterdir())
    assert {"manifest.json", "state.json", ".metadata", "__0_0.distcp", "__1_0.distcp"} <= set(names)
    for name in names:
        for change in ("flip", "flip", "flip", "truncate", "remove"):
            copy = tmp_path / "checkpoints" / "step-00000006"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            content = bytearray((copy / name).read_bytes())
            if change == "remove":
                (copy / name).unlink()
            else:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                (copy / name).write_bytes(content if change == "flip" else content[: rng.randrange(len(content))])
            assert main([str(copy)]) == 2, (name, change)
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and name in errors[0], (name, change, errors)


def test_settings_that_do_not_fit_the_vectors_are_noticed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.checkpoint import folder as folders

    copy = tmp_path / "step-00000006"
    shutil.copytree(newest(runs / "grouped"), copy)
    state = read_state(copy)
    for key, value, said in (
        ("density", 0.5, "elements of model.layers.0.self_attn.q_proj.values, expected 288"),
        ("densitty", 0.5, "sparsity.densitty is not a known key"),
    ):
        config = {**state["config"], "sparsity": {**state["config"]["sparsity"], key: value}}
        (copy / "state.json").write_text(json.dumps({**state, "config": config}))
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"]["state.json"] = folders.describe(copy / "state.json")
        manifest["self"] = folders.manifest_digest(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        assert main([str(copy)]) == 2
        assert said in capsys.readouterr().err


def test_it_runs_as_a_program_without_a_process_group(runs: Path) -> None:
    command = [sys.executable, "-m", "tools.inspect_checkpoint", str(runs / "tied"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 6
    assert done.stderr == ""
    assert subprocess.run([*command[:3], "--help"], cwd=ROOT, capture_output=True).returncode == 0
