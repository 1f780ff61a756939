"""Runs that write and are judged: trained once, by two ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.tools.inference.runs import jobs, train_each, write_corpus


@dataclass
class Trained:
    """What the tests read; they must not write into it."""

    folder: Path
    corpus: str
    outcomes: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, model: str) -> Trained:
    folder = tmp_path_factory.mktemp("inference")
    corpus = write_corpus(folder, model)
    return Trained(folder, corpus, run_ranks(train_each, 2, jobs(folder, corpus, model), timeout=300)[0])
