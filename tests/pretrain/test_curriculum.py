"""Runs on a curriculum: stages begin at their sample, and stops in any of them change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.state import read_state
from pretrain.data.corpus import open_corpus
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

SEQUENCE, BATCH, STEPS = 16, 8, 14
ENDS = (20, 71)
"""Samples at which the second and third stage begin: within steps 3 and 9."""
STOPS = (2, 6, 12)
"""Steps after which runs are stopped, one in each stage."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curriculum")


@pytest.fixture(scope="module")
def spec(folder: Path) -> list[dict[str, Any]]:
    a, b = write_corpus(folder / "a", tokens=900), write_corpus(folder / "b", tokens=2000, seed=1)
    return [
        {"until_tokens": SEQUENCE * ENDS[0], "blend": [{"path": a}]},
        {"until_tokens": SEQUENCE * ENDS[1] - 3, "blend": [{"path": a, "weight": 1.0}, {"path": b, "weight": 2.0}]},
        {"blend": [{"path": b}]},
    ]


@pytest.fixture(scope="module")
def outcomes(folder: Path, spec: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One run through, and one for each stop that is stopped there and goes on."""

    def job(name: str, stop_at: int = 0) -> dict[str, Any]:
        given = settings(spec[2]["blend"][0]["path"], folder / name, train__steps=STEPS, train__stop_at=stop_at)
        given["data"] = {"curriculum": spec, "seq_length": SEQUENCE}
        given["evaluation"] = {"interval": 0}
        return given

    jobs = {"through": job("through")}
    for stop in STOPS:
        jobs |= {f"until-{stop}": job(f"at-{stop}", stop), f"from-{stop}": job(f"at-{stop}")}
    results = run_ranks(train_all, 2, list(jobs.values()), timeout=300)
    return dict(zip(jobs, results[0], strict=True))


def test_a_stop_in_any_stage_changes_nothing(outcomes: dict[str, dict[str, Any]]) -> None:
    through = outcomes["through"]
    assert through["steps"] == list(range(1, STEPS + 1))
    for stop in STOPS:
        assert outcomes[f"until-{stop}"]["steps"] == list(range(1, stop + 1))
        assert outcomes[f"from-{stop}"]["steps"] == through["steps"]
        assert outcomes[f"from-{stop}"]["losses"] == through["losses"]
        assert outcomes[f"from-{stop}"]["digests"] == through["digests"]


def test_tokens_of_each_corpus_are_logged_and_saved(
    outcomes: dict[str, dict[str, Any]], folder: Path, spec: list[dict[str, Any]]
) -> None:
    corpus = open_corpus(spec, SEQUENCE, 0)
    assert outcomes["through"]["steps"]
    lines = [json.loads(line) for line in (folder / "through" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        expected = {prefix: n * SEQUENCE for prefix, n in corpus.consumed(line["step"] * BATCH).items()}
        assert {prefix: line[f"tokens/{prefix}"] for prefix in expected} == expected
        assert sum(expected.values()) == line["tokens"]
    for stop in STOPS:
        state = read_state(folder / f"at-{stop}" / "checkpoints" / f"step-{stop:08d}")
        assert state["callbacks"]["sources"]["tokens"] == {
            prefix: n * SEQUENCE for prefix, n in corpus.consumed(stop * BATCH).items()
        }


def test_a_stage_is_announced_when_it_begins(outcomes: dict[str, dict[str, Any]], spec: list[dict[str, Any]]) -> None:
    a, b = (source["path"] for source in spec[1]["blend"])
    first, second, third = (
        f"curriculum: stage 1 of 3, from token 0 on: {a} 1",
        f"curriculum: stage 2 of 3, from token {SEQUENCE * ENDS[0]} on: {a} 0.3333, {b} 0.6667",
        f"curriculum: stage 3 of 3, from token {SEQUENCE * ENDS[1]:,} on: {b} 1",
    )

    def told(name: str) -> list[str]:
        return [line for line in outcomes[name]["screen"].splitlines() if line.startswith("curriculum: ")]

    assert told("through") == [first, second, third]
    assert [told(f"from-{stop}") for stop in STOPS] == [[first, second, third], [second, third], [third]]
