"""Runs that multiply active tiles: as with whole matrices to rounding, in every layout, and resumed exactly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

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
    given["sparsity"]["block"] = list(block)
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
