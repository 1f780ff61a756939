"""Runs that multiply active tiles: as with whole matrices to rounding, in every layout, and resumed exactly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pretrain.checkpoint.folder import read_manifest
from smet import measured
from smet.errors import ConfigError
from smet.kernels import tiles_cpu
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train, write_corpus

pytestmark = pytest.mark.skipif(tiles_cpu.library() is None, reason="no AVX-512, or no C++ compiler")

LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"parallel__zero_stage": 1},
    "ZeRO-2, replicated masks, checkpointing": {
        "parallel__zero_stage": 2, "sparsity__mask_residency": "replicated", "train__activation_checkpointing": True,
    },
    "ZeRO-3, dense residency": {"parallel__zero_stage": 3, "sparsity__weight_residency": "dense"},
    "tensor": {"parallel__tensor": 2, "sparsity__topology_ranges": 2},
    "sequence": {"parallel": {"tensor": 2, "sequence": True}, "sparsity__topology_ranges": 2},
    "pipeline": {"parallel__pipeline": 2, "parallel__zero_stage": 1},
    "gradient growth": {"parallel__zero_stage": 2, "sparsity__growth": "gradient"},
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def job(corpus: str, folder: Path, block: tuple[int, int] = (8, 16), **changes: Any) -> dict[str, Any]:
    """Eight samples of 16 tokens a step: 64 tokens a rank and step."""
    whole = changes.pop("parallel", None)
    given = settings(corpus, folder, **{"train__micro_batch_size": 4, "checkpoint__interval": 0, **changes})
    given["model"].update(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    given["model"].update(vocab_size=98)
    given["sparsity"] |= {"block": list(block), "prune_start": 0.2}
    if block == (16, 16):  # fewer tiles than rows and columns of them
        given["sparsity"]["balance"] = "never"
    return {**given, **({"parallel": whole} if whole else {})}


def train_with(backend: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train jobs, and see that it was ``backend`` that multiplied."""
    os.environ["SMET_COMPUTE"] = backend
    with mock.patch.object(tiles_cpu, "spread", wraps=tiles_cpu.spread) as spread:
        results = [train(one) for one in jobs]
    assert bool(spread.call_count) == (backend == "tiles")
    return results


@pytest.mark.parametrize("block", [(8, 16), (16, 16)])
def test_one_rank_trains_as_with_whole_matrices(corpus: str, tmp_path: Path, block: tuple[int, int]) -> None:
    found = {
        backend: run_ranks(train_with, 1, backend, [job(corpus, tmp_path / backend, block)])[0][0]
        for backend in ("dense", "tiles")
    }
    assert found["tiles"]["losses"] == pytest.approx(found["dense"]["losses"], rel=1e-4)
    assert found["tiles"]["digests"] == found["dense"]["digests"] and len(found["tiles"]["digests"]) == 3


@pytest.fixture(scope="module")
def alone(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs of one rank, by what decides about their topology."""
    kinds = {"": {}, "ranges": {"sparsity__topology_ranges": 2}, "growth": {"sparsity__growth": "gradient"}}
    folder = tmp_path_factory.mktemp("alone")
    jobs = [job(corpus, folder / f"run{kind}", **changes) for kind, changes in kinds.items()]
    return dict(zip(kinds, run_ranks(train_with, 1, "tiles", jobs)[0], strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_as_one_rank_does(
    corpus: str, tmp_path: Path, alone: dict[str, dict[str, Any]], name: str
) -> None:
    layout = LAYOUTS[name]
    first, second = run_ranks(train_with, 2, "tiles", [job(corpus, tmp_path / "run", **layout)])
    expected = alone["growth" if "growth" in name else "ranges" if "sparsity__topology_ranges" in layout else ""]
    assert first[0]["losses"] == second[0]["losses"]
    assert first[0]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    if "tensor" not in str(layout) and "pipeline" not in str(layout):  # whose digests are of other parts
        assert first[0]["digests"] == expected["digests"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(corpus: str, tmp_path: Path, precision: str) -> None:
    common = {"parallel__zero_stage": 2, "train__precision": precision}
    whole = job(corpus, tmp_path / "whole", **common)
    parts = [job(corpus, tmp_path / "parts", **common, train__stop_at=stop) for stop in (4, 9, 14)]
    *_, uninterrupted = run_ranks(train_with, 2, "tiles", [whole])[0]
    *_, resumed = run_ranks(train_with, 2, "tiles", parts)[0]
    for what in ("losses", "norms", "validation", "digests", "masks"):
        assert resumed[what] == uninterrupted[what], what


def one_differs(one: dict[str, Any], variable: str, value: str) -> str:
    if os.environ["RANK"] == "1":
        os.environ[variable] = value
        tiles_cpu.library.cache_clear()
    try:
        train(one)
    except ConfigError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("SMET_KERNELS", "reference", "processor, compiler or version of Triton"),
        ("SMET_COMPUTE", "dense", "SMET_COMPUTE"),
    ],
)
def test_ranks_that_multiply_differently_are_refused_on_each(
    corpus: str, tmp_path: Path, variable: str, value: str, what: str
) -> None:
    """One would wait for the others' parts of a mask that they do not ask for."""
    one = job(corpus, tmp_path / "run", parallel__zero_stage=2)
    told = run_ranks(one_differs, 2, one, variable, value)
    assert len(set(told)) == 1 and f"not made alike on all ranks ({what} differ)" in told[0]


def train_measured(
    jobs: list[dict[str, Any]], seconds: list[dict[str, float]]
) -> list[tuple[list[str], Any, list[float]]]:
    """Train jobs of which each finds other times on rank 0; lines on products, the record, and losses."""
    rank, found = int(os.environ["RANK"]), []
    os.environ.pop("SMET_COMPUTE", None)
    for one, taken in zip(jobs, seconds, strict=True):
        own = taken if rank == 0 else {"tiles": taken["dense"], "dense": taken["tiles"]}
        with mock.patch.object(measured, "_times", lambda case, names, own=own: {name: own[name] for name in names}):
            result = train(one)
        lines = [line for line in result["screen"].splitlines() if "products" in line]
        newest = sorted(Path(one["train"]["output_dir"]).glob("checkpoints/step-*"))[-1]
        found.append((lines, read_manifest(newest).get("products"), result["losses"]))
    return found


def test_what_multiplies_is_measured_at_the_start_recorded_and_kept_on_resume(corpus: str, tmp_path: Path) -> None:
    common = {"parallel__zero_stage": 2, "sparsity__block": [16, 16]}
    jobs = [
        job(corpus, tmp_path / "run", **common, train__stop_at=4),
        job(corpus, tmp_path / "run", **common, train__stop_at=6),
        job(corpus, tmp_path / "run", **common, train__stop_at=8, train__micro_batch_size=2),
        job(
            corpus, tmp_path / "run", **common, train__stop_at=10, train__micro_batch_size=2, sparsity__compute="dense"
        ),
    ]
    fast, slow = {"tiles": 1.0, "dense": 2.0}, {"tiles": 2.0, "dense": 1.0}
    first, second = run_ranks(train_measured, 2, jobs, [fast, slow, slow, fast])
    assert [record for _, record, _ in first] == [record for _, record, _ in second], "rank 1 would choose otherwise"
    (begun, record, _), (gone_on, kept, _), (again, changed, _), (told, none, _) = first
    assert "products measured in" in begun[0] and "products by tiles" in begun[-1]
    assert set(record["chosen"].values()) == {"tiles"} and record["layout"] == {"data": 2, "tensor": 1, "pipeline": 1}
    assert kept == record and "products by tiles" in gone_on[-1] and not any("measured" in line for line in gone_on)
    assert "products were measured again (other shapes than in the checkpoint)" in "".join(again)
    assert set(changed["chosen"].values()) == {"dense"} and "products by dense" in again[-1]
    assert none is None and not any("measured" in line for line in told)
