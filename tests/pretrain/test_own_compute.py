"""Who multiplies, named in the run file: a backend of one's own outside the packages trains equal to the dense one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.__main__ import main
from tests.distributed import run_ranks
from tests.pretrain.runs import settings, train_all, write_corpus

OWN = "tests.pretrain.own_compute"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


def job(corpus: str, output: Path, compute: str, **changes: Any) -> dict[str, Any]:
    given = settings(corpus, output, **changes)
    return {**given, "sparsity": {**given["sparsity"], "compute": compute}}


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_an_own_backend_trains_equal_to_the_dense_one_and_is_named_at_the_start(
    corpus: str, tmp_path: Path, growth: str
) -> None:
    names = ["auto", "dense", f"{OWN}:Halves", f"{OWN}:Wrong"]
    jobs = [
        job(corpus, tmp_path / str(n), name, parallel__zero_stage=2, sparsity__growth=growth)
        for n, name in enumerate(names)
    ]
    auto, dense, halves, wrong = run_ranks(train_all, 2, jobs)[0]
    assert auto["losses"] == dense["losses"] and auto["digests"] == dense["digests"]
    assert halves["losses"] == pytest.approx(dense["losses"], rel=1e-4)
    assert halves["digests"][4] == dense["digests"][4]
    assert wrong["losses"][0] != pytest.approx(dense["losses"][0], rel=1e-4), "the backend that is named multiplies"
    # Keys and values of one head are the eight features that it does not serve.
    assert "products by halves (10 layers), dense (4 layers)" in halves["screen"]
    assert "products by dense" in auto["screen"] and "products by wrong" in wrong["screen"]


def train_forced(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``train_all`` in ranks whose environment names the dense backend."""
    os.environ["SMET_COMPUTE"] = "dense"
    return train_all(jobs)


def test_the_environment_overrides_the_run_file(corpus: str, tmp_path: Path) -> None:
    short = {"train__steps": 3}
    (forced,) = run_ranks(train_forced, 1, [job(corpus, tmp_path / "forced", f"{OWN}:Wrong", **short)])[0]
    (dense,) = run_ranks(train_all, 1, [job(corpus, tmp_path / "dense", "dense", **short)])[0]
    assert forced["losses"] == dense["losses"]
    assert "products by dense (SMET_COMPUTE=dense)" in forced["screen"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "dens",
            "sparsity.compute is 'dens', expected one of auto, tiles, dense, or package.module:name (did you mean",
        ),
        (f"{OWN}:Halvs", f"compute is '{OWN}:Halvs': {OWN} has no 'Halvs' (did you mean 'Halves'?)"),
        (f"{OWN}:Unfinished", "Unfinished, which lacks serves, forward, input_gradient, values_gradient, flops"),
        ("tests.nowhere:Halves", "module tests.nowhere cannot be imported"),
    ],
)
def test_a_backend_that_is_not_there_is_one_line(
    corpus: str, tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(job(corpus, tmp_path / "run", name)))
    assert main([str(file), "--dry-run"]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
