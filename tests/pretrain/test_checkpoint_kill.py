"""SIGKILL at any moment: the next start goes on from the newest published checkpoint, and ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pretrain.checkpoint import folder as folders
from tests.pretrain.attempts import write_run_file
from tests.pretrain.programs import Program
from tests.pretrain.runs import outcome, write_corpus

INTERVAL = 3
SETTINGS: dict[str, Any] = {
    "parallel__zero_stage": 2,
    "checkpoint__interval": INTERVAL,
    "checkpoint__keep_last": 2,
    "checkpoint__keep_every": 12,
}

MOMENTS = ("half written", "before the rename", "before latest", "while retiring")
"""Where the main rank ends itself, without a word to anybody; see ``die_at``."""


def die_at(moment: str, step: int) -> None:
    """Make this rank kill itself with SIGKILL at one moment of publishing the checkpoint after ``step``."""
    if os.environ["RANK"] != "0":
        return
    done = {"half written": "describe", "before the rename": "sync_folder", "before latest": "write_synced"}
    name = done.get(moment, "retire")
    genuine = getattr(folders, name)

    def fatal(path: Path, *arguments: Any) -> Any:
        root = path.parent
        temporary, final = folders.temporary_folder(root, step), folders.step_folder(root, step)
        if moment == "half written" and path.parent.name == temporary.name:
            with open(path, "r+b") as file:
                file.truncate(path.stat().st_size // 2)
            die()
        if moment == "before the rename" and path == temporary:
            die()
        if moment == "before latest" and path.name == ".latest.tmp" and arguments == (f"{final.name}\n",):
            die()
        if moment == "while retiring" and path == final:
            with mock.patch("shutil.rmtree", lambda *_, **__: os.path.lexists(root / ".old-step-00000003") and die()):
                genuine(path, *arguments)
        return genuine(path, *arguments)

    setattr(folders, name, fatal)


def die() -> None:
    """No handler, no flush, no farewell."""
    os.kill(os.getpid(), signal.SIGKILL)


def newest_whole(run: Path) -> int:
    """Step of the newest published checkpoint, 0 if there is none; it has to be whole."""
    found = folders.published(run / "checkpoints")
    if not found:
        return 0
    assert folders.damage(found[-1], folders.read_manifest(found[-1])) == []
    return folders.step_of(found[-1])


def last_step(run: Path) -> int:
    """The newest step in the metrics."""
    path = run / "metrics.jsonl"
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return 0


def resumed_at(program: Program) -> int:
    """Where a program that got to its first line says it goes on; 0 = from the beginning."""
    lines = [line for line in program.out().splitlines() if line.startswith("resumed from ")]
    return int(lines[0].rsplit(" ", 1)[1]) if lines else 0


def check_after_kill(run: Path) -> int:
    """What has to hold of a killed run's folder; returns the step that it has to go on from."""
    saved = newest_whole(run)
    # The save before the last must be over when a later one begins, so two intervals are lost at most.
    assert last_step(run) - saved < 2 * INTERVAL + 1
    return saved


def finish(run_file: str, screen: Path, run: Path, saved: int) -> None:
    """Run to the end, from ``saved``."""
    with Program(screen, 2, [run_file]) as program:
        assert program.wait() == [0, 0], program.errors()
        assert resumed_at(program) == saved
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert not [name for name in names if name.startswith(".")], names
    steps = [folders.step_of(path) for path in folders.published(run / "checkpoints")]
    assert len([name for name in names if name.startswith("step-")]) == len(steps)
    assert (run / "checkpoints" / "latest").read_text().strip() == folders.step_folder(run, steps[-1]).name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train", tokens=5000)


def test_killed_at_each_moment_of_publishing(corpus: str, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    files = [write_run_file(tmp_path / f"{run.name}.yaml", corpus, run, **SETTINGS) for run in (whole, torn)]
    finish(files[0], tmp_path / "screen-whole", whole, 0)
    saved = 0
    for moment, step in zip(MOMENTS, (3, 6, 9, 12), strict=True):
        with Program(tmp_path / moment, 2, [files[1]], (die_at, moment, step)) as program:
            program.processes[0].join(60)
            assert program.processes[0].exitcode == -signal.SIGKILL, program.errors()
            program.kill()
            assert resumed_at(program) == saved
        saved = check_after_kill(torn)
        assert saved == (step if moment in ("before latest", "while retiring") else step - INTERVAL)
    finish(files[1], tmp_path / "screen-torn", torn, saved)
    assert outcome(torn) == outcome(whole)


STEPS = 60


@pytest.mark.parametrize("kills", [pytest.param(10, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.sweep)])
def test_killed_at_random(corpus: str, tmp_path: Path, kills: int) -> None:
    """From start-up to the last save; in half of the cases while a checkpoint is being written or published."""
    long = {**SETTINGS, "train__steps": STEPS}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    files = [write_run_file(tmp_path / f"{run.name}.yaml", corpus, run, **long) for run in (whole, torn)]
    finish(files[0], tmp_path / "screen-whole", whole, 0)
    rng = random.Random(4)
    hit: Counter[str] = Counter()
    saved = 0
    for number in range(kills):
        kind = ("start-up", "step", "writing", "renamed", "writing")[number % 5]
        with Program(tmp_path / f"kill-{number}", 2, [files[1]]) as program:
            delay = wait_for(kind, program, torn, saved, rng)
            program.kill()
            assert all(process.exitcode == -signal.SIGKILL for process in program.processes), program.errors()
            if program.out():
                assert resumed_at(program) == saved
        moment = classify(torn, program)
        hit[moment] += 1
        now = check_after_kill(torn)
        assert now >= saved, "a published checkpoint was lost"
        print(f"kill {number + 1}: {kind} + {1000 * delay:.0f} ms -> {moment}; goes on from step {now}")
        saved = now
    print(dict(hit))
    assert hit["writing"] + hit["published, latest older"] >= kills // 4, hit
    finish(files[1], tmp_path / "screen-torn", torn, saved)
    assert outcome(torn) == outcome(whole)


def wait_for(kind: str, program: Program, run: Path, saved: int, rng: random.Random) -> float:
    """Return at a random moment of this kind of a program that goes on from step ``saved``; the delay drawn."""
    checkpoints = run / "checkpoints"
    target = min(saved + INTERVAL * rng.choice((1, 1, 2)), STEPS - INTERVAL)

    def reached() -> bool:
        if kind == "step":
            return last_step(run) >= target - 1 and saved < last_step(run)
        if kind == "writing":
            return any(folders.temporary_folder(checkpoints, target + more).exists() for more in (0, INTERVAL))
        return (folders.step_folder(checkpoints, target) / folders.MANIFEST).exists()

    delay = rng.uniform(0, 1.5) if kind == "start-up" else rng.uniform(0, 0.03 if kind != "renamed" else 0.002)
    deadline = time.monotonic() + 60
    while kind != "start-up" and program.is_running and not reached() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(delay)
    return delay


def classify(run: Path, program: Program) -> str:
    """What a kill interrupted, by what it left."""
    checkpoints = run / "checkpoints"
    if not program.out():
        return "start-up"
    if checkpoints.exists() and list(checkpoints.glob(".tmp-*")):
        return "writing"
    found = folders.published(checkpoints)
    latest = checkpoints / "latest"
    if found and (not latest.exists() or latest.read_text().strip() != found[-1].name):
        return "published, latest older"
    return "training"
