"""What release 0.1 wrote loads as before: values, masks, moments, ages, clock and data position bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launch.__main__ import main as launch
from pretrain.config import load_config
from tests.distributed import run_ranks
from tests.releases.stored import (
    CHECKPOINT,
    FACTS,
    RUNS,
    SAVED,
    STEPS,
    STORED,
    digest,
    go_on_all,
    job,
    load_all,
    put_together,
    samples_in_order,
    unpack,
)
from tools import export_hf, inspect_checkpoint, plot_run
from tools.ablate.matrix import load_matrix

LAYOUTS: dict[str, tuple[int, dict[str, Any] | None]] = {
    "its own": (2, None),
    "one rank": (1, {"zero_stage": 1}),
    "tensor 2": (2, {"tensor": 2, "zero_stage": 2}),
    "ZeRO-3": (2, {"zero_stage": 3}),
    "pipeline 2": (2, {"pipeline": 2, "zero_stage": 1}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored runs, which nothing below trains on."""
    return unpack(tmp_path_factory.mktemp("stored"), *RUNS)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What the ranks hold after loading, by run and layout."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for ranks in (1, 2):
        keys = [(run, name) for run in RUNS for name, (size, _) in LAYOUTS.items() if size == ranks]
        jobs = [job(folder, run, LAYOUTS[name][1], stop_at=SAVED) for run, name in keys]
        per_rank = run_ranks(load_all, ranks, str(folder), jobs, timeout=280)
        found |= {key: [rank[number] for rank in per_rank] for number, key in enumerate(keys)}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("run", RUNS)
def test_vectors_clock_and_data_position_are_loaded_bit_for_bit(
    loaded: dict[tuple[str, str], list[dict[str, Any]]], run: str, layout: str
) -> None:
    ranks, facts = loaded[run, layout], RUNS[run]
    assert put_together(ranks) == facts["vectors"]
    assert samples_in_order(ranks) == facts["samples"]
    for rank in ranks:
        assert (rank["step"], rank["consumed_samples"]) == (SAVED, facts["consumed_samples"])
        clock, ages = rank["topology"], facts["topology"]["ages"]
        assert {**{key: clock[key] for key in facts["topology"]}, "ages": None} == {**facts["topology"], "ages": None}
        assert {key: clock["ages"][key] for key in ages} == ages
        assert rank["probe"]["tokens"] == facts["probe"]["tokens"]
        assert rank["probe"]["loss"] == pytest.approx(facts["probe"]["loss"], rel=1e-5)
    if layout == "its own":
        assert ranks[0]["masks"] == facts["masks"]


def test_the_runs_go_on_in_their_folders_as_the_release_went_on(tmp_path: Path) -> None:
    unpack(tmp_path, *RUNS)
    jobs = [job(tmp_path, run) for run in RUNS]
    for run, found in zip(RUNS, run_ranks(go_on_all, 2, str(tmp_path), jobs, timeout=280)[0], strict=True):
        facts = RUNS[run]
        assert found["steps"] == list(range(1, STEPS + 1))
        assert found["losses"] == pytest.approx(facts["losses"], rel=1e-5)
        assert found["losses"][:SAVED] == facts["losses"][:SAVED]
        assert {str(step): text for step, text in found["digests"].items()} == facts["digests"]
        assert (tmp_path / run / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").is_file()


def test_the_runs_go_on_at_one_rank(folder: Path) -> None:
    jobs = [job(folder, run, {"zero_stage": 2}) for run in RUNS]
    for run, found in zip(RUNS, run_ranks(go_on_all, 1, str(folder), jobs, timeout=280)[0], strict=True):
        assert found["steps"] == list(range(SAVED + 1, STEPS + 1))
        update = SAVED // 4 * 4 + 4  # until which the topology is the same at every layout
        known = RUNS[run]["losses"][SAVED:update]
        assert found["losses"][: len(known)] == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_tools_read_what_the_release_wrote(
    folder: Path, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, place = RUNS[run], folder / run
    assert inspect_checkpoint.main([str(place / CHECKPOINT), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in facts["inspected"]} == facts["inspected"]
    out = tmp_path / "exported"
    assert export_hf.main([str(place), str(out), "--tokenizer", "none"]) == 0
    exported = {**load_file(out / "model.safetensors"), **load_file(out / "masks.safetensors")}
    assert {key: digest(value) for key, value in exported.items()} == facts["exported"]
    assert plot_run.main([str(place), "--output", str(tmp_path / "run.png")]) == 0
    assert (tmp_path / "run.png").stat().st_size > 1000
    capsys.readouterr()
    assert launch(["status", str(place)]) == 0
    assert f"step {SAVED} of {STEPS}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("configs"), "configs") / "configs"


def as_it_was(found: dict[str, Any]) -> dict[str, Any]:
    """Settings of today with the key that TensorBoard had, where it means what the writers of today mean."""
    names = [writer["name"] for writer in found["logging"]["writers"]]
    assert names in ([], ["tensorboard"])
    return {**found, "logging": {**found["logging"], "tensorboard": bool(names)}}


@pytest.mark.parametrize("file", FACTS["configs"])
def test_run_files_mean_what_they_meant(configs: Path, file: str) -> None:
    """Sections and keys that came later are at their defaults, and not looked at."""
    found = as_it_was(load_config(configs / file).to_dict())
    differ = {
        f"{section}.{key}": (found[section].get(key), value)
        for section, known in FACTS["configs"][file].items()
        for key, value in known.items()
        if found[section].get(key) != value and f"{section}.{key}" != "sparsity.row_parallel"
    }
    assert differ == {}


@pytest.mark.parametrize("run", RUNS)
def test_settings_that_a_run_folder_keeps_mean_what_they_meant(folder: Path, run: str) -> None:
    """Every key of the release is written out in them."""
    state = json.loads((folder / run / CHECKPOINT / "state.json").read_text())
    found, known = as_it_was(load_config(folder / run / "config.yaml").to_dict()), state["config"]
    differ = [
        f"{section}.{key}"
        for section in known
        for key, value in known[section].items()
        if json.loads(json.dumps(found[section].get(key))) != value
    ]
    assert [key for key in differ if key != "sparsity.row_parallel"] == []


@pytest.mark.parametrize("file", ["ablations/llama.yaml", "ablations/llama-quick.yaml"])
def test_matrices_load(configs: Path, file: str) -> None:
    assert len(load_matrix(configs / file).cells) > 10


def test_the_stored_files_are_those_of_the_release(folder: Path) -> None:
    """Nobody has made them again with a later program."""
    for run in RUNS:
        manifest = json.loads((folder / run / CHECKPOINT / "manifest.json").read_text())
        assert manifest["git"] == "cf5544102b481b74d70c17455d1f5734fa03ad19"
    assert sum(path.stat().st_size for path in STORED.iterdir()) < 400_000
