"""A run that is asked to stop saves and leaves with the documented exit code, whenever it is asked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.signals import Signals
from pretrain.callbacks.base import Callback
from pretrain.checkpoint.folder import published, read_manifest, step_of
from pretrain.config import config_from_dict
from pretrain.exit_codes import DONE, STOPPED
from pretrain.run import prepared
from pretrain.stopping import SIGNALS, StopRequest
from pretrain.trainer import Trainer
from tests.distributed import run_ranks
from tests.pretrain.attempts import start, wait, write_run_file
from tests.pretrain.runs import layout_of, outcome, settings, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("stopping") / "corpus")


class Asking(Callback):
    """Asks this rank alone to stop: in a step, or in the evaluation behind it."""

    name = "asking"

    def __init__(self, step: int, in_evaluation: bool):
        self.step, self.in_evaluation = step, in_evaluation

    def on_start(self, trainer: Trainer) -> None:
        if not self.in_evaluation:
            return
        original = trainer.engine.loss

        def loss(tokens: Any) -> float:
            if trainer.step == self.step:
                trainer.stop_request.reason = "SIGTERM"
            return original(tokens)

        trainer.engine.loss = loss  # type: ignore[method-assign]

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step + 1 == self.step and not self.in_evaluation:
            trainer.stop_request.reason = "SIGTERM"


def train(case: dict[str, Any]) -> dict[str, Any]:
    config = config_from_dict(case["job"])
    layout = layout_of(config)
    with contextlib.redirect_stdout(io.StringIO()), prepared(config, layout) as trainer:
        if layout.rank == 1 and "step" in case:
            trainer.callbacks.insert(0, Asking(case["step"], case["in_evaluation"]))
        trainer.fit()
    return {"step": trainer.step, "reason": trainer.stop_reason, "early": trainer.stopped_early}


def train_all(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [train(case) for case in cases]


def test_all_ranks_stop_where_one_is_asked(corpus: str, tmp_path: Path) -> None:
    def job(name: str) -> dict[str, Any]:
        return settings(corpus, tmp_path / name, evaluation__interval=3, evaluation__samples=40)

    cases = [
        {"job": job("whole")},
        {"job": job("step"), "step": 5, "in_evaluation": False},
        {"job": job("step")},
        {"job": job("evaluation"), "step": 6, "in_evaluation": True},
        {"job": job("evaluation")},
    ]
    first, second = run_ranks(train_all, 2, cases, timeout=240)
    assert first == second
    ends = [(found["step"], found["reason"], found["early"]) for found in first]
    assert ends == [(14, "", False), (5, "SIGTERM", True), (14, "", False), (6, "SIGTERM", True), (14, "", False)]
    for name in ("step", "evaluation"):
        assert outcome(tmp_path / name)["losses"] == outcome(tmp_path / "whole")["losses"]


def test_deadlines_come_from_settings_and_from_slurm() -> None:
    now, request = time.time(), StopRequest()
    request.limit(0, 120, {})
    assert request.deadline == float("inf") and request.why() == ""
    request.limit(10, 120, {})
    assert request.deadline == pytest.approx(now + 480, abs=5)
    request.limit(10, 120, {"SLURM_JOB_END_TIME": str(int(now) + 300)})
    assert request.deadline == pytest.approx(now + 180, abs=5)
    assert request.why() == ""
    request.limit(0, 120, {"SLURM_JOB_END_TIME": str(int(now) + 60)})
    assert request.why() == "time limit"


STEPS = 40
ENDLESS = 5000
"""Steps of a run that is not to end by itself, however fast it is."""


def follow(processes: list[subprocess.Popen[str]], folder: Path, step: int, delay: float) -> None:
    """Signal all ranks, as launchers do, ``delay`` seconds after the run has reached ``step`` (0: has started)."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not all(catches_sigterm(process.pid) for process in processes):
        time.sleep(0.005)  # before that Python itself is starting
    while step and time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if path.exists() and len(path.read_text().splitlines()) >= step:
            break
        time.sleep(0.005)
    time.sleep(delay)
    for process in processes:
        process.send_signal(signal.SIGTERM)


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler of its own, or has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")] or ["0"]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) or "State:\tZ" in status


def check_stopped(ends: list[subprocess.CompletedProcess[str]], folder: Path) -> None:
    checkpoints = published(folder / "checkpoints")
    if "ended while starting" in ends[0].stderr:
        assert [end.returncode for end in ends] == [STOPPED, STOPPED], ends
        lines = {line for end in ends for line in end.stderr.splitlines()}
        assert lines == {"SIGTERM: ended while starting; nothing was trained yet"}, ends
        return
    assert checkpoints, ends
    read_manifest(checkpoints[-1])
    done = step_of(checkpoints[-1])
    codes = {end.returncode for end in ends}
    assert codes == ({DONE} if done == STEPS else {STOPPED}), (done, ends)
    # A signal that comes when the last step is done finds nothing left to stop: the run ends as finished.
    told = ends[0].stdout.count("stopping after this step")
    assert told == 1 or (told == 0 and codes == {DONE}), ends
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    assert len(lines) == done, "nothing that was trained is lost"


def write_job(corpus: str, folder: Path) -> str:
    changes = {"train__steps": STEPS, "checkpoint__interval": 3, "evaluation__interval": 4, "evaluation__samples": 24}
    return write_run_file(folder.with_suffix(".yaml"), corpus, folder, **changes)


@pytest.mark.parametrize(("step", "delay"), [(0, 2.0), (7, 0.0)], ids=["starting", "running"])
def test_a_signal_to_real_processes(corpus: str, tmp_path: Path, step: int, delay: float) -> None:
    processes = start(2, [write_job(corpus, tmp_path / "run")])
    follow(processes, tmp_path / "run", step, delay)
    check_stopped(wait(processes), tmp_path / "run")


def test_a_terminal_that_goes_away_stops_a_run_that_loses_nothing(corpus: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = write_job(corpus, folder)
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests run under nohup hand on that it is ignored
        os.execv(sys.executable, [sys.executable, "-m", "pretrain", job, f"train.steps={ENDLESS}"])
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 90
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 7):
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(terminal, False)
            os.read(terminal, 1 << 16)  # a full terminal would block the run
        time.sleep(0.005)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    newest = published(folder / "checkpoints")[-1]
    assert code == STOPPED and 7 <= step_of(newest) < ENDLESS
    assert len(metrics.read_text().splitlines()) == step_of(newest)


def test_a_run_that_has_hangups_ignored_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS.values()}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        for keeper in (StopRequest(), Signals()):
            keeper.install()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "signals", [pytest.param(5, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.sweep)]
)
def test_signals_at_random_moments_of_one_run(corpus: str, tmp_path: Path, signals: int) -> None:
    """Start-ups, first steps, evaluations and saves; the run goes on each time, and ends as one that was left alone."""
    rng, folder = random.Random(0), tmp_path / "run"
    job = write_job(corpus, folder)
    for _ in range(signals):
        lines = (folder / "metrics.jsonl").read_text().splitlines() if folder.exists() else []
        processes = start(2, [job])
        follow(processes, folder, rng.choice([0, len(lines) + rng.randint(1, 3)]), rng.uniform(0.2, 0.5))
        check_stopped(wait(processes), folder)
        if len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS:
            break
    last = wait(start(2, [job]))
    assert [end.returncode for end in last] == [DONE, DONE]
    whole = tmp_path / "whole"
    assert [end.returncode for end in wait(start(2, [write_job(corpus, whole)]))] == [DONE, DONE]
    assert outcome(folder)["losses"] == outcome(whole)["losses"]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, STEPS + 1)
    )
