"""Commands that messages name work as they are, also where a folder's name has blanks in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.attempt import Ended
from pretrain.data.indexed import IndexedDataset
from pretrain.ends import last_line
from pretrain.errors import DataError
from pretrain.exit_codes import DONE
from pretrain.run_folder import Reached, RunFolder
from tests.launch.test_supervisor import Cluster, supervise
from tools.import_hf import describe


def command(text: str, begin: str) -> list[str]:
    """The words of the command in ``text`` that begins so, as a shell takes them."""
    return shlex.split(text[text.index(begin) :].partition("; ")[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my 'best' run"
    made.mkdir()
    return made


def test_the_last_line_of_a_run(folder: Path) -> None:
    trainer = SimpleNamespace(step=8, total_steps=8, last_step=8, stop_reason="", folder=RunFolder(folder))
    told = last_line(cast(Any, trainer), first=0)
    assert command(told, "python -m tools.plot_run") == ["python", "-m", "tools.plot_run", str(folder)]
    assert command(told, "python -m tools.export_hf") == ["python", "-m", "tools.export_hf", str(folder), "OUT"]


def test_the_last_line_of_the_supervisor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    run = folder / "runs" / "small"
    supervise(Cluster(run, [(Ended(DONE, "done"), Reached(10**6, 10**6))]), monkeypatch)
    told = capsys.readouterr().out.splitlines()[-1]
    assert command(told, "python -m tools.plot_run")[-1] == str(run)


def test_what_starts_an_imported_model(folder: Path) -> None:
    report: dict[str, Any] = {"out": f"{folder}/out", "checkpoint": f"{folder}/out/step-00000000", "tokenizer": ""}
    told = describe({**report, "passed_over": [], "dropped": [], "parameters": 1, "parameters_stored": 1})
    assert command(told, "python -m pretrain")[-1] == f"checkpoint.resume={folder}/out/step-00000000"


def test_what_makes_a_corpus_that_is_missing(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        IndexedDataset(folder / "corpus")
    assert command(str(caught.value), "python -m tools.preprocess")[-1] == f"{folder}/corpus"
