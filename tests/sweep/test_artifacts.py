"""Checkpoints, corpora and run files with damage anywhere: read as if they were whole, or refused in one clear line."""

from __future__ import annotations

import collections
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.cases import cases, prepare
from tests.sweep.judge import told, verdict
from tests.sweep.pool import Answer, Case, run_all
from tests.sweep.test_tools import SECONDS, SEED
from tests.sweep.tools import ARTIFACTS

COUNTS = {
    "corpus with a manifest": 130, "corpus without one": 80, "checkpoint, exported": 120, "checkpoint, resumed": 80,
    "run file": 90,
}  # fmt: skip
"""500 in all."""
SAMPLE = 6
SEEN_ELSEWHERE = ("corpus.bin", "noise.bin", "run.yaml", "config.yaml")
"""Another token, or another setting, is a whole reading of another thing. Only `tools.dataset verify` reads every
byte and can tell the first from damage."""


def reading(answer: Answer) -> str:
    """The line that says what was read."""
    return next((line for line in answer["out"].splitlines() if line.startswith("reading ")), "")


def wrong(case: Case, answer: Answer, whole: Any, earlier: str) -> str | None:
    """What is wrong; None where nothing is."""
    if (known := verdict(case, answer)) or answer["code"] != 0:
        return known
    if reading(answer) == reading(whole) or any(name in case["how"] for name in SEEN_ELSEWHERE):
        return None
    if earlier in answer["out"] + answer["err"]:  # said that it went back to the checkpoint before
        return None
    return "damage was read without a word"


def faults(world: Path, root: Path, kind: str, count: int) -> list[str]:
    """Sweep one kind of artifact and print how its cases ended."""
    results = run_all(cases(kind, count, SEED, root), partial(prepare, world=world), SECONDS)
    assert len(results) == count
    (_, whole), *rest = results
    assert whole["code"] == 0 and reading(whole), whole
    earlier = "step-00000003" if kind.startswith("checkpoint") else "\0"
    found = [told(case, answer, fault) for case, answer in rest if (fault := wrong(case, answer, whole, earlier))]
    ends = collections.Counter(str(answer.get("code", "none")) for _, answer in rest)
    print(f"{kind}: {len(rest)} damaged, exit codes {dict(sorted(ends.items()))}, {len(found)} faults")
    return found


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_a_sample_of_damaged_artifacts_is_refused_or_read_as_if_whole(world: Path, tmp_path: Path, kind: str) -> None:
    assert not (found := faults(world, tmp_path, kind, SAMPLE)), "\n\n".join(found)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_damaged_artifacts_are_refused_or_read_as_if_whole(world: Path, tmp_path: Path, kind: str) -> None:
    assert not (found := faults(world, tmp_path, kind, COUNTS[kind] + 1)), "\n\n".join(found)
