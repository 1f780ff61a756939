"""Starts in broken environments end, or say what they wait for, within ten seconds; signals end them within five."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretrain.attempts import write_run_file
from tests.pretrain.broken_environments import (
    CASES,
    DISKS,
    FIRST_LINE_SECONDS,
    ROOT,
    SIGNAL_SECONDS,
    SLOWER,
    WAITS,
    Case,
    Trial,
    Tried,
)
from tests.pretrain.runs import write_corpus


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("broken")
    corpus = write_corpus(folder / "corpus", tokens=2000)
    return write_run_file(folder / "run.yaml", corpus, folder / "run", evaluation__interval=0)


@pytest.fixture(scope="module")
def kernels_built() -> None:
    """On a new machine each start would build them, be stopped before that ends, and so leave it to the next one."""
    subprocess.run([sys.executable, "-c", BUILD_KERNELS], cwd=ROOT, check=True, timeout=1200)


BUILD_KERNELS = "from smet.kernels import choose, tiles_cpu; choose('cpu'); tiles_cpu.library()"


def fault(case: Case, tried: Tried) -> str:
    """What is wrong with a start that nobody disturbs."""
    if tried.first_line is None:
        return f"{case.name}: not said within {FIRST_LINE_SECONDS} s: {case.line}"
    if case.code is not WAITS and tried.code != case.code:
        return f"{case.name}: exit code {tried.code}, expected {case.code}"
    return "" if case.code is WAITS or tried.code is not None else f"{case.name}: has not ended"


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_a_sample_ends_or_says_what_it_waits_for(case: Case, config: str, tmp_path: Path) -> None:
    trial = Trial(case, tmp_path, config)
    tried = trial.run(slower=4.0)  # the bound itself is for a quiet machine, and for the sweep
    assert fault(case, tried) == "", trial.screen.read_text()
    assert "Traceback" not in trial.screen.read_text()


@pytest.mark.sweep
@pytest.mark.usefixtures("kernels_built")
def test_all_of_them_and_both_signals(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten minutes; on a machine that is not quiet, SMET_TEST_SLOWER=3 gives each start three times as long."""
    cases = CASES + (DISKS if can_mount() else [])
    rows, faults = [], []
    for index, case in enumerate(cases):
        tried = (trial := Trial(case, tmp_path / f"{index}", config)).run()
        faults += [problem] if (problem := fault(case, tried)) else []
        faults += [f"{case.name}: traceback"] if "Traceback" in trial.screen.read_text() else []
        seconds = []
        for number in (signal.SIGINT, signal.SIGTERM):
            stopped = Trial(case, tmp_path / f"{index}-{number}", config).run(number)
            seconds.append(stopped.ended if stopped.code is not None else None)
            if stopped.code is None:
                faults.append(f"{case.name}: {number.name} did not end it within {SIGNAL_SECONDS} s")
        code = "waits" if case.code is WAITS else tried.code
        times = [f"{value:.1f}" if value is not None else "-" for value in (tried.first_line, *seconds)]
        rows.append(f"| {case.name} | {times[0]} | {code} | {times[1]} | {times[2]} | {tried.line[:110]} |")
    with capsys.disabled():
        print(f"\n| environment | line after s | exit code | SIGINT s | SIGTERM s | line |\n{'| --- ' * 6}|")
        print("\n".join(rows))
        print(f"{len(rows)} environments, {len(faults)} faults (times allowed x {SLOWER:g})")
    assert not faults, faults
    assert len(rows) >= 30
