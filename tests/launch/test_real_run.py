"""A real run on two processes of this machine, whose processes are killed, or which is asked to stop."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.on_host.processes import environment, rank_of
from pretrain.exit_codes import STOPPED
from pretrain.run_folder import RunReader
from tests.cluster.runs import ROOT, Run, assert_equal, end, undisturbed

LOCAL = ("--gpus-per-node", "2", "--back-off", "0.2")


def ranks_of(run: Run) -> list[int]:
    """Processes that are ranks of this run at the moment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (variables := environment(int(entry.name))) and rank_of(variables) is not None:
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(run.file) in command and "pretrain" in command:
                found.append(int(entry.name))
    return found


def test_asked_to_stop_it_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, train__steps=60, checkpoint__interval=50)
    run.stop_midway(*LOCAL)
    assert not ranks_of(run)
    assert run.launch(*LOCAL) == 0, run.screen()
    assert_equal(run, undisturbed(run))


def test_a_terminal_that_goes_away_is_a_request_to_save_and_stop(tmp_path: Path) -> None:
    run = Run(tmp_path, train__steps=4000, checkpoint__interval=0)
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests run under nohup hand on that it is ignored
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "launch", str(run.file), *LOCAL])
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 120
    while run.step() < 20 and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)  # a full terminal would block the run
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == STOPPED
    reached = RunReader(run.output).reached()
    assert reached.checkpoint == reached.step >= 20 and not ranks_of(run)


def test_bad_settings_are_not_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.launch(*LOCAL, "data.train=/no/such/corpus") == 2
    assert run.screen().count("error:") == 1 and "restart" not in run.screen()


def kill_at_random(run: Run, times: int) -> None:
    """Start a run and kill one of its ranks so many times, each time some steps on; it has to finish."""
    chance = random.Random(0)
    process = run.start(*LOCAL)
    try:
        for number in range(times):
            reached = run.step()
            run.until(lambda at=reached: run.step() > at + 1 and len(ranks_of(run)) == 2, process)  # type: ignore[misc]
            os.kill(chance.choice(ranks_of(run)), signal.SIGKILL)
            run.until(lambda n=number: len(run.events("restart")) > n, process)  # type: ignore[misc]
        assert process.wait(400) == 0, run.screen()
    finally:
        end(process)
    assert len(run.events("restart")) == times
    assert_equal(run, undisturbed(run))


def test_two_kills_and_it_finishes(tmp_path: Path) -> None:
    kill_at_random(Run(tmp_path, train__steps=60, checkpoint__interval=1), 2)


@pytest.mark.sweep
def test_twenty_kills_and_it_finishes(tmp_path: Path) -> None:
    kill_at_random(Run(tmp_path, train__steps=300, checkpoint__interval=1), 20)
