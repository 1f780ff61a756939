"""One attempt with real processes: stand-ins for a launcher and its ranks, which start in milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch import attempt as module
from launch.attempt import Attempt, Ended, Watch, meeting_point
from launch.hosts import Host
from launch.job import Job, Start
from launch.remote import Remote
from launch.signals import Signals

RANK = """
import json, os, signal, sys, time
rank, behaviour, folder = int(os.environ["RANK"]), sys.argv[1], sys.argv[2]
if behaviour in ("saves", "worker"):
    signal.signal(signal.SIGTERM, lambda *_: open(f"{folder}/saved-{rank}", "a").write("x") and os._exit(75))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "worker":
    worker = os.fork()
    if not worker:
        signal.signal(signal.SIGTERM, lambda *_: open(f"{folder}/worker-{rank}", "a").write("x"))
        time.sleep(60)
for beat in range(1000000):
    if not (behaviour == "silent" and rank == 1 and beat > 3):
        path = f"{folder}/heartbeat/rank-{rank:05d}.json"
        record = {"rank": rank, "host": f"host-{rank}", "pid": os.getpid(), "step": 1, "phase": "backward",
                  "alive": time.time()}
        with open(path + ".tmp", "w") as file:
            json.dump(record, file)
        os.replace(path + ".tmp", path)
    if behaviour == "first" and beat == 60 - 55 * rank:
        record["phase"] = "ended"
        with open(path, "w") as file:
            json.dump(record, file)
        sys.exit(0)
    if behaviour == "ends" and beat == 5:
        sys.exit(int(sys.argv[3]))
    time.sleep(0.05)
"""
LAUNCHER = """
import os, subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, *sys.argv[1:]], env={**os.environ, "RANK": str(n)}) for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    return tmp_path


Make = Callable[..., Attempt]


@pytest.fixture
def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """An attempt whose ranks behave as told."""

    def made(behaviour: str, *more: str, signals: Signals | None = None, **limits: float) -> Attempt:
        words = (sys.executable, str(folder / "launcher.py"), str(folder / "rank.py"), behaviour, str(folder), *more)
        monkeypatch.setattr(module, "start_of", lambda job: Start(command=words, variables=job.variables))
        job = Job(
            launcher="local", config="c", overrides=(), hosts=(Host("localhost", 2),), variables={},
            python=sys.executable, folder=str(folder),
        )  # fmt: skip
        watch = Watch(**{"poll": 0.05, **limits})
        remote = Remote(kind="local", python=sys.executable)
        return Attempt(job, remote, folder, f"test-{os.getpid()}-{time.monotonic_ns()}", signals or Signals(), watch)

    return made


def left_behind(attempt: Attempt) -> list[int]:
    from launch.on_host.processes import members

    return sorted(members(attempt.id))


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something once something else has happened."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def both_alive(folder: Path) -> bool:
    return len(list((folder / "heartbeat").glob("*.json"))) == 2


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (2, "exit code 2"), (75, "exit code 75")])
def test_the_launchers_exit_code_is_handed_on(make: Make, code: int, words: str) -> None:
    attempt = make("ends", str(code))
    assert attempt.run() == Ended(code, words)
    assert attempt.ranks_seen == 2 and left_behind(attempt) == []


@pytest.mark.parametrize("behaviour", ["saves", "worker"])
def test_a_request_reaches_every_rank_once_and_no_worker(make: Make, folder: Path, behaviour: str) -> None:
    signals = Signals()
    attempt = make(behaviour, signals=signals)
    thread = when(lambda: both_alive(folder), lambda: signals.received.append(signal.SIGINT))
    assert attempt.run().code == 75
    thread.join()
    assert [(folder / f"saved-{rank}").read_text() for rank in range(2)] == ["x", "x"]
    assert not list(folder.glob("worker-*")) and left_behind(attempt) == []


def test_a_second_request_ends_it_at_once(make: Make, folder: Path) -> None:
    signals = Signals()
    attempt = make("stays", signals=signals)
    again = [signal.SIGTERM, signal.SIGTERM]
    thread = when(lambda: both_alive(folder), lambda: signals.received.extend(again))
    begin = time.monotonic()
    assert attempt.run() == Ended(-9, "ended at once, as asked")
    thread.join()
    assert time.monotonic() - begin < 15 and left_behind(attempt) == []


def test_a_run_that_does_not_stop_is_ended(make: Make, folder: Path) -> None:
    signals = Signals()
    attempt = make("stays", signals=signals, patience=1.0)
    thread = when(lambda: both_alive(folder), lambda: signals.received.append(signal.SIGTERM))
    assert attempt.run() == Ended(-9, "did not stop within 1 s of being asked")
    thread.join()
    assert left_behind(attempt) == []


def test_a_rank_without_a_sign_of_life_ends_the_attempt_and_is_named(make: Make) -> None:
    attempt = make("silent", lost_after=1.5)
    ended = attempt.run()
    assert ended.code == -9
    assert ended.reason.startswith("rank 1 on host-1 gave no sign of life for") and "phase backward" in ended.reason
    assert left_behind(attempt) == []


def test_a_rank_that_has_ended_is_not_lost(make: Make) -> None:
    assert make("first", lost_after=1.0).run() == Ended(0, "exit code 0")


def test_ranks_that_never_come_up_end_the_attempt(make: Make, folder: Path) -> None:
    (folder / "rank.py").write_text("import time; time.sleep(60)")
    ended = make("stays", start_within=0.5).run()
    assert ended == Ended(-9, "2 of 2 ranks gave no sign of life within 0 s")


def test_heartbeats_of_an_earlier_attempt_do_not_count(make: Make, folder: Path) -> None:
    assert make("ends", "0").run().code == 0
    (folder / "rank.py").write_text("")
    attempt = make("ends", "0")
    assert attempt.run().code == 0
    assert attempt.ranks_seen == 0


def test_a_launcher_that_is_missing_is_a_failed_attempt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = make("ends", "0")
    monkeypatch.setattr(module, "start_of", lambda job: Start(command=("no-such-launcher",)))
    assert attempt.run() == Ended(127, "no-such-launcher cannot be started: No such file or directory")


@pytest.mark.parametrize(
    ("interface", "expected"), [("lo", "127.0.0.1"), ("none0", "a has no interface none0 with an address, it has")]
)
def test_the_first_host_is_asked_for_its_address(make: Make, interface: str, expected: str) -> None:
    attempt = make("ends", "0")
    job = replace(attempt.job, hosts=(Host("a", 1),), interface=interface)
    address, _, problem = meeting_point(job, attempt.remote)
    assert expected in (problem.reason if problem else address)
    unreachable = Remote(kind="ssh", python="python", ssh=("false",))
    assert meeting_point(job, unreachable)[2] == Ended(255, "a does not tell its address: exit code 1: no output")


def test_a_host_is_lost_only_if_the_run_stands_still_too(make: Make, folder: Path) -> None:
    attempt = make("stays")
    attempt.remote = Remote(kind="ssh", python="python", ssh=("false",))
    attempt.names = ["a"]
    metrics = folder / "metrics.jsonl"
    assert attempt._lost_hosts() == ()
    metrics.write_text('{"step": 1}\n')
    assert attempt._lost_hosts() == (), "it got on in between"
    assert attempt._lost_hosts() == ("a",)


def test_other_attempts_are_left_alone(make: Make, folder: Path) -> None:
    environment = {**os.environ, "SMET_LAUNCH_ID": "somebody-elses", "RANK": "0"}
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    try:
        assert make("ends", "1").run().code == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
