"""What all sweeps damage copies of, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.world import build


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of whole, small inputs; tests must not write into it."""
    return build(tmp_path_factory.mktemp("sweep") / "world")
