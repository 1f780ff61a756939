"""Runs of balanced tiles: in every layout the same masks, resumed exactly; runs of before go on as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.changes import settle
from pretrain.config import config_from_dict
from smet.mask import unpack
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train, what_stops, write_corpus
from tools.checkpoints.reader import Checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train", tokens=3000)


def job(corpus: str, folder: Path, **changes: Any) -> dict[str, Any]:
    given = settings(
        corpus, folder, **{"evaluation__interval": 0, "train__steps": 9, "train__global_batch_size": 4, **changes}
    )
    given["sparsity"] |= {"block": [2, 4], "update_interval": 3, "prune_schedule": "constant", "density": 0.33}
    given["sparsity"] |= {key.partition("__")[2]: v for key, v in changes.items() if key.startswith("sparsity__")}
    given["model"] |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    given["model"]["vocab_size"] = 98
    return given


def masks(folder: Path) -> dict[str, torch.Tensor]:
    """Last masks of a run by layer, as rows and columns of tiles."""
    newest = Checkpoint(folder)
    layers = {weight.layer: newest.mask(weight) for weight in newest.weights if weight.layer is not None}
    return {spec.name: unpack(bits, spec.grid.tiles).view(spec.grid.shape) for spec, bits in layers.items()}


def topology(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's topology updates."""
    return [json.loads(line) for line in (folder / "topology.jsonl").read_text().splitlines()]


def train_each(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train jobs; one with ``forget`` finds its run folder without these keys."""
    found = []
    for one in jobs:
        file = Path(one["train"]["output_dir"]) / "config.yaml"
        for key in one.pop("forget", ()):
            file.write_text("".join(line for line in file.open() if not line.startswith(f"  {key}:")))
        found.append(train(one))
    return found


def branch(corpus: str, output: Path, folder: Path) -> dict[str, Any]:
    """A job that goes on from the run that is not balanced, and brings its masks towards it."""
    start = {"checkpoint__resume": str(folder / "old" / "checkpoints" / "step-00000004")}
    return job(corpus, output, sparsity__balance="towards", **RANGES, **start)


RANGES = {"sparsity__prune_start": 0.3, "sparsity__topology_ranges": 2, "sparsity__growth": "gradient"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("balance")


@pytest.fixture(scope="module")
def alone(corpus: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs of one rank: balanced ones, whole and resumed, and ones of before balance."""
    old = {"sparsity__balance": "never", "sparsity__prune_start": 0.2}
    jobs = {
        "whole": job(corpus, folder / "whole", **RANGES),
        "first part": job(corpus, folder / "parts", **RANGES, train__stop_at=4),
        "resumed": job(corpus, folder / "parts", **RANGES),
        "old, whole": job(corpus, folder / "old-whole", **old),
        "old, first part": job(corpus, folder / "old", **old, train__stop_at=4),
        "old, resumed": {**job(corpus, folder / "old", train__stop_at=7), "forget": ("balance",)},
        "old, resumed again": job(corpus, folder / "old"),
        "old, towards": branch(corpus, folder / "towards", folder),
    }
    return dict(zip(jobs, run_ranks(train_each, 1, list(jobs.values()))[0], strict=True))


def test_rows_and_columns_stay_equal_in_every_range(alone: dict[str, dict[str, Any]], folder: Path) -> None:
    assert alone["whole"]["digests"].keys() == {3, 6, 9} and len(set(alone["whole"]["digests"].values())) == 3
    for name, mask in masks(folder / "whole").items():
        degrees = [mask.sum(0), mask.sum(1), *(half.sum(0) for half in mask.chunk(2))]
        assert all(int(part.max() - part.min()) <= 1 for part in degrees), name
        assert mask.any(0).all() and mask.any(1).all()


def test_a_resumed_run_is_the_uninterrupted_one(alone: dict[str, dict[str, Any]]) -> None:
    for what in ("losses", "norms", "digests", "masks"):
        assert alone["resumed"][what] == alone["whole"][what]


def test_a_run_from_before_goes_on_as_it_was(alone: dict[str, dict[str, Any]]) -> None:
    told = "sparsity.balance is never and prune_start 0.2, as the run began"
    for name in ("old, resumed", "old, resumed again"):
        assert told in alone[name]["screen"] and "changed since" not in alone[name]["screen"]
    assert told not in alone["old, whole"]["screen"] and told not in alone["resumed"]["screen"]
    for what in ("losses", "digests", "masks"):
        assert alone["old, resumed again"][what] == alone["old, whole"][what]
    assert alone["old, whole"]["digests"] != alone["whole"]["digests"]


def test_a_branch_brings_masks_towards_balance_and_says_how_far(alone: dict[str, dict[str, Any]], folder: Path) -> None:
    screen, records = alone["old, towards"]["screen"], topology(folder / "towards")
    assert "sparsity.balance: 'never' -> 'towards'" in screen
    counts = [record["uneven"] for record in records]
    assert len(counts) == 2 and counts[0] > counts[1] > 0
    assert f"{counts[0]} rows and columns of tiles off balance" in screen
    assert all(record["uneven"] == 0 for record in topology(folder / "whole")), "counted where it is asked for"


@pytest.mark.parametrize(
    "parallel", [{"tensor": 2, "zero_stage": 1}, {"zero_stage": 3}, {"pipeline": 2, "zero_stage": 1}], ids=str
)
def test_every_layout_has_the_same_masks(
    corpus: str, tmp_path: Path, alone: dict[str, dict[str, Any]], folder: Path, parallel: dict[str, int]
) -> None:
    one = {**job(corpus, tmp_path / "run", **RANGES), "parallel": parallel}
    towards = {**branch(corpus, tmp_path / "towards", folder), "parallel": parallel}
    found = run_ranks(train_each, 2, [one, towards])[0][0]
    assert found["losses"] == pytest.approx(alone["whole"]["losses"], rel=1e-4)
    for kind, name in (("whole", "run"), ("towards", "towards")):
        expected, made = masks(folder / kind), masks(tmp_path / name)
        assert expected.keys() == made.keys() and all(torch.equal(expected[key], made[key]) for key in made), name
    counts = [[record["uneven"] for record in topology(one)] for one in (folder / "towards", tmp_path / "towards")]
    assert counts[0] == counts[1]


def test_what_the_file_says_itself_is_not_settled_by_the_run_folder(corpus: str, tmp_path: Path) -> None:
    old = {"sparsity": {"block": [2, 4], "prune_start": 0.2}}
    for given, saved, expected in (
        ({}, {}, ("auto", 0.05)), ({}, old, ("never", 0.2)), ({"sparsity__prune_start": 0.3}, old, ("never", 0.3)),
        ({"sparsity__balance": "always"}, old, ("always", 0.05)),
        ({}, {"sparsity": {"balance": "auto", "prune_start": 0.05}}, ("auto", 0.05)),
        ({}, {"sparsity": {"balance": 7}}, ("auto", 0.05)), ({}, {"sparsity": None}, ("auto", 0.05)),
    ):  # fmt: skip
        config = config_from_dict(job(corpus, tmp_path, **given))
        settle(config, saved)
        assert (config.sparsity.balance, config.sparsity.prune_start) == expected


def test_too_few_tiles_are_refused_before_anything_is_written(corpus: str, tmp_path: Path) -> None:
    one = job(corpus, tmp_path / "run", sparsity__block=[16, 16])
    told = run_ranks(what_stops, 2, {**one, "parallel": {"zero_stage": 2}})
    assert len(set(told)) == 1
    assert told[0].startswith("sparsity.block is [16, 16], expected tiles so small") and "fits is [4, 8]" in told[0]
    assert not (tmp_path / "run" / "config.yaml").exists()
