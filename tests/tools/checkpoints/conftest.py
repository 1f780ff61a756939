"""Runs that the tests of the checkpoint tools read: trained once, by two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.pretrain.runs import train_all, write_corpus
from tests.tools.checkpoints.models import jobs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of a small corpus."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    """A folder of the runs that ``models.jobs`` names; tests must not write into it."""
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(train_all, 2, list(jobs(corpus, folder).values()))
    return folder
