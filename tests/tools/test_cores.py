"""Processors that this process may use, and that everybody asks for them in one place."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.tools.texts import ROOT

BOUND = (
    "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from tools.cores import cores; print(cores())"
)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call here")
def test_a_process_that_is_bound_to_one_has_one() -> None:
    found = subprocess.run([sys.executable, "-c", BOUND], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"


@pytest.mark.parametrize(
    ("expression", "places"), [("sched_getaffinity(0)", ["tools/cores.py"]), ("sha256(path.read_bytes())", [])]
)
def test_what_was_said_in_several_places_is_said_in_one(expression: str, places: list[str]) -> None:
    said = [
        path.relative_to(ROOT).as_posix()
        for package in ("smet", "pretrain", "launch", "tools")
        for path in (ROOT / package).rglob("*.py")
        if expression in path.read_text(encoding="utf-8")
    ]
    assert said == places
