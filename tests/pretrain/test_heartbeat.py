"""Heartbeats say where each rank is; the watchdog ends a run that hangs, and names the rank that does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pretrain.config import config_from_dict
from pretrain.errors import CheckpointError, DataError
from pretrain.exit_codes import STUCK
from pretrain.heartbeat import Heartbeat, _used_by_others, require_free
from pretrain.laggards import is_deadlock, laggards
from pretrain.run import prepared
from pretrain.run_folder import RunFolder
from tests.distributed import run_ranks
from tests.pretrain.attempts import launch, start, write_run_file
from tests.pretrain.programs import Program
from tests.pretrain.runs import layout_of, settings, write_corpus


def state(rank: int, **changes: Any) -> dict[str, Any]:
    given = {"rank": rank, "host": f"node{rank}", "pid": 100 + rank, "phase": "training", "step": 6, "progress": 40}
    return {**given, "stuck": True, "waiting": True, "stack": ["a.py:1 f"], **changes}


@pytest.mark.parametrize(
    ("states", "ranks", "text"),
    [
        (
            [state(0), state(1, progress=39, phase="reading data"), state(2)],
            [1],
            "reading data of step 7: got least",
        ),
        ([state(0), state(1), state(2, waiting=False)], [2], "rank 2 on node2 (pid 102)"),
        ([state(0), state(1, stuck=False), state(2)], [1], "shows no sign of life"),
        ([state(0), state(2)], [1], "rank 1, which never wrote a heartbeat: shows no sign"),
        ([state(rank, waiting=False) for rank in range(3)], [0, 1, 2], "all ranks are at the same place"),
        ([state(rank) for rank in range(3)], [0, 1, 2], "all ranks wait for each other, rank 0 at a.py:1 f, rank 1 at"),
    ],
)
def test_the_rank_that_lags_is_named(states: list[dict[str, Any]], ranks: list[int], text: str) -> None:
    report = laggards({state["rank"]: state for state in states}, 3)
    assert report["ranks"] == ranks
    assert text in report["text"]


def test_a_rank_that_got_there_later_is_told_from_a_dead_one() -> None:
    states = {0: state(0), 1: state(1, stuck=False, alive=1000.0)}
    assert laggards(states, 2, since=990.0)["text"].endswith("of step 7: got there later, and is at work")
    assert "shows no sign of life" in laggards(states, 2, since=1001.0)["text"]


@pytest.mark.parametrize(
    "changes", [{}, {"idle": False}, {"waiting": False}, {"stuck": False}, {"progress": 41}, {"phase": "topology"}]
)
def test_only_ranks_that_all_do_nothing_but_wait_are_locked(changes: dict[str, Any]) -> None:
    states = {rank: state(rank, idle=True) for rank in range(3)}
    assert is_deadlock({**states, 2: {**states[2], **changes}}) == (not changes)


def test_a_file_that_is_no_heartbeat_counts_as_none(tmp_path: Path) -> None:
    heart = Heartbeat(RunFolder(tmp_path), 0, 5, interval=1, stuck_after=0, start_within=0)
    heart.publish()
    good = json.loads((heart.path / "rank-00000.json").read_text())
    for rank, content in enumerate(({**good, "progress": "7"}, [good], {**good, "stuck": True}, None), start=1):
        (heart.path / f"rank-{rank:05d}.json").write_text(json.dumps(content))
    assert list(heart.read_all()) == [0]
    assert laggards(heart.read_all(), 5)["ranks"] == [1, 2, 3, 4, 0]


def test_files_follow_the_run(tmp_path: Path) -> None:
    heart = Heartbeat(RunFolder(tmp_path), 1, 2, interval=0.02, stuck_after=0, start_within=0)
    heart.start()
    time.sleep(0.1)
    assert not heart.path.exists(), "nothing is written before the folder is this run's"
    heart.publish()
    heart.mark("training", 7)
    time.sleep(0.2)
    written = json.loads((tmp_path / "heartbeat" / "rank-00001.json").read_text())
    assert (written["phase"], written["step"], written["rank"], written["stuck"]) == ("training", 7, 1, False)
    assert written["alive"] >= written["moved"]
    heart.close()
    assert json.loads((tmp_path / "heartbeat" / "rank-00001.json").read_text())["phase"] == "ended"


HANG = """
import os, sys, time
from pretrain.data.loader import BatchLoader
from pretrain.heartbeat import Heartbeat
publish = Heartbeat.publish
def publish_and_watch(self):
    publish(self)
    self.stuck_after = 6  # start-up may take longer than that on a busy machine
Heartbeat.publish = publish_and_watch
original = BatchLoader.batches
def batches(self, first):
    if os.environ["RANK"] == "1" and first >= 40:
        time.sleep(600)
    return original(self, first)
BatchLoader.batches = batches
from pretrain.__main__ import main
from pretrain.leaving import leave_with
leave_with(main)
"""


def test_a_hang_on_one_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", evaluation__interval=0)
    (tmp_path / "hang.py").write_text(HANG)
    begin = time.monotonic()
    arguments = [file, "operation.heartbeat=0.5"]
    ends = launch(2, arguments, program=[str(tmp_path / "hang.py")])
    assert [end.returncode for end in ends] == [STUCK, STUCK], ends
    assert time.monotonic() - begin < 100
    said = ends[0].stderr + ends[1].stderr
    assert said.count("error: no progress for 6 s: rank 1 on ") == 1, said
    assert "in reading data of step 6: does not wait for the others" in said
    (event,) = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["ranks"]) == ("stuck", [1])
    assert any("hang.py" in frame for frame in event["stacks"]["1"])


def test_start_up_that_stands_still_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heart = Heartbeat(RunFolder(tmp_path), 0, 2, interval=0.02, stuck_after=0, start_within=0.1)
    heart.start()
    heart.mark("building the model", 0)
    time.sleep(0.6)
    heart.mark("training", 0)
    heart.mark("topology", 1)
    heart.mark("training", 0)  # gone back behind the first step
    time.sleep(0.4)  # the first step is done: what stands still now is the business of stuck_after
    heart.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: no progress for 0 s in start-up: rank 0 on ")
    assert "in building the model of step 1: does not wait for others; at " in line and "test_heartbeat.py" in line


POLLING = {thread: 0.004 for thread in range(40)}
"""Seconds of processor time that threads which look whether anything has come take in each second."""
CROWD = {thread: 0.002 for thread in range(200)}
"""The same of threads that share what they get of a processor, and are at work."""


@pytest.mark.parametrize(
    ("used", "idle"),
    [(POLLING, True), ({}, True), ({**POLLING, 40: 0.02}, False), ({**POLLING, 7: 0.011}, False), (CROWD, False)],
)
def test_many_threads_that_poll_are_idle_and_one_that_sends_is_not(
    tmp_path: Path, used: dict[int, float], idle: bool
) -> None:
    heart = Heartbeat(RunFolder(tmp_path), 0, 2, interval=1.0, stuck_after=0, start_within=1.0)
    for beat in range(5):
        assert not heart.state(stuck=True)["idle"], "nothing is known before there are five beats"
        # Thread 40 comes late; all that it has used counts.
        seconds = {thread: 3.0 + beat * each for thread, each in used.items() if thread != 40}
        heart._beats.append((float(beat), seconds | ({40: used[40] * beat} if 40 in used and beat > 2 else {})))
    assert heart.state(stuck=True)["idle"] is idle


def test_the_processor_time_of_each_other_thread_is_seen() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        before = _used_by_others()
        while _used_by_others()[thread.native_id or 0] < before[thread.native_id or 0] + 0.05:
            assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
    assert threading.get_native_id() not in before


def lonely_stage() -> None:
    """What hung once: the last stage has nothing sparse, so its ranks wait in another all-reduce of the norm."""
    import pretrain.build
    import pretrain.plan.cut
    import pretrain.run

    pretrain.plan.cut.cut = lambda *_: [0, 3, 5]
    pretrain.build.fill_up = lambda groups, *_: groups
    pretrain.run.require_alike = lambda *_: None


def slow_start() -> None:
    """Rank 1 reads its first batch for seconds."""
    from pretrain.data.loader import BatchLoader

    original = BatchLoader.batches

    def batches(self: Any, first: int) -> Any:
        if os.environ["RANK"] == "1" and first == 0:
            time.sleep(5)
        return original(self, first)

    BatchLoader.batches = batches  # type: ignore[method-assign]


def test_ranks_that_wait_for_each_other_in_the_first_step_end_soon(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    changes = {"parallel__pipeline": 2, "parallel__zero_stage": 1, "operation__start_within": 2.0}
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", **changes)
    with Program(tmp_path / "screen", 2, [file, "operation.heartbeat=0.5"], prepare=(lonely_stage,)) as program:
        assert STUCK in program.wait(100), program.errors()
        *warned, line = [line for line in program.errors() if "no progress" in line]
    assert len(warned) <= 1, "the ranks are not seen to be idle at once while they look at their stacks"
    assert line.startswith("error: no progress for ") and " s in the first step: rank 0 on " in line
    assert "rank 1 on " in line and "all ranks wait for each other, rank 0 at stage_1_and_2.py:" in line
    (event,) = [json.loads(text) for text in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["ranks"], event["step"]) == ("stuck", [0, 1], 0)


def test_a_slow_first_step_is_told_and_goes_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    changes = {"train__steps": 2, "operation__start_within": 1.5, "evaluation__interval": 0}
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", **changes)
    with Program(tmp_path / "screen", 2, [file, "operation.heartbeat=0.3"], prepare=(slow_start,)) as program:
        assert program.wait(60) == [0, 0], program.errors()
        (line,) = [line for line in program.errors() if "in reading data" in line]
    assert line.startswith("warning: no progress for ") and " in start-up: rank 1 on " in line
    assert line.endswith("in reading data of step 1: does not wait for the others")


def test_a_run_that_is_started_twice_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    changes = {"evaluation__interval": 0, "checkpoint__interval": 10**6, "train__steps": 10**6}
    file = write_run_file(tmp_path / "run.yaml", corpus, tmp_path / "run", **changes)
    (first,) = start(1, [file, "operation.heartbeat=0.2"])
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < deadline, "the first run does not begin"
            time.sleep(0.1)
        (second,) = launch(1, [file])
        assert second.returncode == 2 and second.stdout == ""
        assert f"in use: process {first.pid} of this machine trains in it" in second.stderr
        assert second.stderr.count("\n") == 1
        assert first.poll() is None, "the first one goes on"
    finally:
        first.kill()
        first.communicate()
    (third,) = launch(1, [file, "train.stop_at=1"])
    assert third.returncode == 0, third.stderr


def test_an_old_heartbeat_of_a_process_number_that_others_have_now_does_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "heartbeat").mkdir()
    old = {"pid": os.getppid(), "host": socket.gethostname(), "phase": "training", "step": 3}
    path = tmp_path / "heartbeat" / "rank-00000.json"
    path.write_text(json.dumps({**old, "alive": 1.0}))  # written before that process began
    require_free(folder)
    path.write_text(json.dumps({**old, "alive": time.time(), "host": "another"}))
    require_free(folder)
    path.write_text(json.dumps({**old, "alive": time.time()}))
    with pytest.raises(CheckpointError, match="at step 3; let it finish"):
        require_free(folder)


def watchdogs_left(given: dict[str, Any], fails: bool) -> tuple[str, list[str]]:
    """In every rank: why setting the run up failed, and the names of heartbeats that go on behind it."""
    config, why = config_from_dict(given), ""
    trouble = mock.patch("pretrain.run.choose_products", side_effect=DataError("planted") if fails else None)
    try:
        with trouble, contextlib.redirect_stdout(io.StringIO()), prepared(config, layout_of(config)):
            assert "heartbeat" in [thread.name for thread in threading.enumerate()]
    except DataError as error:
        why = str(error)
    return why, [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"]


@pytest.mark.parametrize("fails", [False, True])
def test_no_watchdog_outlives_its_run(tmp_path: Path, fails: bool) -> None:
    """One that did would end the process, later, in the middle of whatever is at work there."""
    given = settings(write_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert run_ranks(watchdogs_left, 1, given, fails) == [("planted" if fails else "", [])]
