"""ZeRO-Offload through a run file: the same run, and checkpoints that a run without it goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offload")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Per stage: a run at home, one with offload, and one that goes on at home where an offloaded one stopped."""
    corpus = write_corpus(folder / "corpus")
    jobs: dict[tuple[int, str], dict[str, Any]] = {}
    for stage in STAGES:
        for kind in ("home", "away", "first half", "second half"):
            job = settings(corpus, folder / f"{stage}-{kind.split()[-1]}", parallel__zero_stage=stage)
            if kind in ("away", "first half"):
                job["deepspeed"] = OFFLOAD
            if kind == "first half":
                job["train"]["stop_at"] = 6
            jobs[stage, kind] = job
    return dict(zip(jobs, run_ranks(train_all, 2, list(jobs.values()), timeout=300)[0], strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_an_offloaded_run_is_the_same_run(runs: dict[tuple[int, str], dict[str, Any]], stage: int) -> None:
    home, away = runs[stage, "home"], runs[stage, "away"]
    assert away["losses"] == pytest.approx(home["losses"], rel=1e-6)
    assert away["masks"] == home["masks"] and away["digests"] == home["digests"] and len(home["digests"]) == 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_at_home_goes_on_from_an_offloaded_ones_checkpoint(
    runs: dict[tuple[int, str], dict[str, Any]], stage: int
) -> None:
    whole, resumed = runs[stage, "home"], runs[stage, "second half"]
    assert "after step 6" in resumed["screen"]
    assert resumed["steps"] == whole["steps"]
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert resumed["masks"] == whole["masks"]


@pytest.mark.parametrize("stage", STAGES)
def test_memory_json_tells_what_is_in_host_memory_and_the_plan_knows_it(
    runs: dict[tuple[int, str], dict[str, Any]], stage: int, folder: Path
) -> None:
    away, home = (json.loads((folder / f"{stage}-{kind}" / "memory.json").read_text()) for kind in ("away", "home"))
    assert home["in_host_memory"] == []
    assert away["in_host_memory"] == ["gradients", "master", "moments", "ages"]
    for measured, planned in zip(away["measured_per_rank"], away["planned_per_rank"], strict=True):
        for part, kinds in measured.items():
            shared = kinds["gradients"] / planned[part]["gradients"]
            assert 0.99 < shared < 1.1, "a gradient that the border of two ranks runs through is whole on both"
            assert {**kinds, "gradients": 0} == pytest.approx({**planned[part], "gradients": 0}, rel=0.01)
    measured, at_home = (report["measured_per_rank"][0]["sparse"] for report in (away, home))
    assert measured["gradients"] >= at_home["gradients"] > 0
    assert measured["master"] == at_home["master"] and measured["moments"] == at_home["moments"]
