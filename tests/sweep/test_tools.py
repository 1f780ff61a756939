"""Every tool on generated bad inputs: a right result or one clear line, whatever comes."""

from __future__ import annotations

import collections
from functools import partial
from pathlib import Path

import pytest

from tests.sweep.cases import cases, prepare
from tests.sweep.judge import told, verdict
from tests.sweep.pool import run_all
from tests.sweep.tools import TOOLS

SEED = 20261127
SAMPLE = 6
"""Cases of each tool in ordinary CI."""
WHOLE = 300
SECONDS = 90.0
"""A case may take so long; a tenth of it is much on a quiet machine."""


def faults(world: Path, root: Path, tool: str, count: int) -> list[str]:
    """Sweep one tool and print how its cases ended."""
    results = run_all(cases(tool, count, SEED, root), partial(prepare, world=world), SECONDS)
    found = [told(case, answer, wrong) for case, answer in results if (wrong := verdict(case, answer))]
    ends = collections.Counter(str(answer.get("code", "none")) for _, answer in results)
    print(f"{tool}: {len(results)} cases, exit codes {dict(sorted(ends.items()))}, {len(found)} faults")
    assert len(results) == count
    assert count == SAMPLE or ends["0"] >= count // 20, "where all is refused at the door, nothing behind it was tried"
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_sample_of_bad_inputs_ends_in_a_clear_line_or_a_right_result(world: Path, tmp_path: Path, tool: str) -> None:
    assert not (found := faults(world, tmp_path, tool, SAMPLE)), "\n\n".join(found)


@pytest.mark.sweep
@pytest.mark.parametrize("tool", TOOLS)
def test_bad_inputs_end_in_a_clear_line_or_a_right_result(world: Path, tmp_path: Path, tool: str) -> None:
    assert not (found := faults(world, tmp_path, tool, WHOLE)), "\n\n".join(found)
