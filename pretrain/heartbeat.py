"""Heartbeats and the watchdog: who is where in the run, and an end to waiting for a rank that will not come.

Each rank's thread writes ``heartbeat/rank-00003.json`` every few seconds. When the main thread of a rank has not
moved for ``stuck_after`` seconds, its watchdog writes that thread's stack beside it. In a stuck run every rank gets
there, because all wait for the one that lags; the first rank that is still alive names it, and the processes end with
exit code 70. Nothing is written before the run folder is this run's; until then each rank speaks for itself.

Start-up and the first step are where a wrong layout or a lost host shows. There the lagging rank is named after
``start_within`` seconds already; the run goes on, since a first step may be slow, unless its ranks all wait for
each other: then nobody will ever come.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import psutil

from pretrain import outside
from pretrain.errors import CheckpointError
from pretrain.exit_codes import STUCK
from pretrain.files import write_atomically
from pretrain.laggards import is_deadlock, is_state, is_waiting, laggards, own_report
from pretrain.run_folder import RunFolder

ALIVE = 60.0
"""Seconds, at least, between two signs of life of a rank on a busy host, other hosts' clocks included."""
IDLE = 0.01
"""Share of a processor that each thread of a rank without anything to do stays below, and a slow network's does not."""
ALL_IDLE = 0.25
"""The same of all its threads together: many that take little each are at work all the same."""
TRAINING = "training"
"""The phase of forward and backward passes and the optimizer's step."""


class Heartbeat:
    """One rank's signs of life.

    Args:
        folder: the run folder, shared by all hosts.
        rank: this process among all.
        world_size: number of processes.
        interval: seconds between two writes.
        stuck_after: seconds without progress that count as stuck; 0 = never.
        start_within: seconds of start-up or of the first step without progress that are worth a line; 0 = never.
    """

    def __init__(
        self, folder: RunFolder, rank: int, world_size: int, interval: float, stuck_after: float, start_within: float
    ):
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.interval, self.stuck_after, self.start_within = interval, stuck_after, start_within
        self.phase, self.step = "starting", 0
        self.progress, self.moved = 0, time.time()
        self._main = threading.main_thread().ident
        self._published = False
        self._first_step: int | None = None
        self._is_starting = True
        """Whether this process has not done its first step yet."""
        self._told = (-1, False)
        """(progress, whether it was the last word) of the line that was said."""
        self._beats: deque[tuple[float, dict[int, float]]] = deque(maxlen=5)
        """(time, processor time of each thread but the heartbeat's) of the last beats before the first step is done."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Begin to write: the run folder is this run's now."""
        self.path.mkdir(exist_ok=True)
        self._published = True
        self._write()

    def mark(self, phase: str, step: int) -> None:
        """Note that the main thread got to ``phase``; costs nothing, so it is called often."""
        self.phase, self.step = phase, step
        if phase == TRAINING and self._first_step is None:
            self._first_step = step
        if self._first_step is not None and step > self._first_step:
            self._is_starting = False
        self.progress += 1
        self.moved = time.time()

    def close(self) -> None:
        """Write a last time and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self.mark("ended", self.step)
            self._write()

    @property
    def path(self) -> Path:
        """Where all ranks' files are."""
        return _file(self.folder, self.rank).parent

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            if self._is_starting:
                self._beats.append((time.monotonic(), _used_by_others()))
            still = time.time() - self.moved
            stuck = 0 < self.stuck_after < still
            slow = self._is_starting and 0 < self.start_within < still
            self._write(stuck or slow)
            if stuck:
                self._end_run()
            elif slow and still > self.start_within + 3 * self.interval:  # by now the other ranks have written it too
                self._tell_of_start(still)

    def _tell_of_start(self, still: float) -> None:
        """Say, once per place, who is waited for; end the process if in the first step all wait for each other."""
        states = self.read_all() if self._published else {self.rank: self.state(stuck=True)}
        locked = self.phase == TRAINING and len(states) == self.world_size > 1 and is_deadlock(states)
        if self._told != (self.progress, locked) and self._may_speak(states):
            self._told = self.progress, locked
            report = self._report(states)
            where = "the first step" if self._first_step is not None else "start-up"
            kind = "error" if locked else "warning"
            print(f"{kind}: no progress for {still:.0f} s in {where}: {report['text']}", file=sys.stderr, flush=True)
            if locked:
                self.folder.append_event("stuck", self.step, **report)
        if locked:
            time.sleep(3 * self.interval)  # until all have seen it: a rank that leaves makes the calls of others fail
            self._leave()

    def _may_speak(self, states: dict[int, dict[str, Any]]) -> bool:
        """One rank speaks for all; before they know of each other, the main one and those that others may wait for."""
        if not self._published:
            return self.rank == 0 or not states[self.rank]["waiting"]
        return self.rank == min((rank for rank, state in states.items() if state.get("stuck")), default=self.rank)

    def _write(self, stuck: bool = False) -> None:
        if not self._published:
            return
        try:
            write_atomically(_file(self.folder, self.rank), json.dumps(self.state(stuck)) + "\n")
        except OSError:
            return  # a shared folder that hiccups must not end a run

    def state(self, stuck: bool = False) -> dict[str, Any]:
        """What the file says; with the stack if nothing moves."""
        content: dict[str, Any] = {
            "rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "phase": self.phase, "step": self.step,
            "progress": self.progress, "moved": self.moved, "alive": time.time(), "stuck": stuck,
        }  # fmt: skip
        if stuck:
            stack = self._stack()
            content["waiting"] = any(is_waiting(frame.filename) for frame in stack[-4:])
            content["idle"] = self._is_idle()
            content["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in stack]
        return content

    def _is_idle(self) -> bool:
        """Whether no thread of this process does anything; sending and adding up gradients is something.

        Each by itself as well: every group of ranks has a thread that looks a hundred times a second whether anything
        has come, and those of many groups together take as much as one that sends.
        """
        if len(self._beats) < 5:
            return False
        (begin, before), (end, now) = self._beats[0], self._beats[-1]
        used = [after - before.get(thread, 0.0) for thread, after in now.items()]
        return max(used, default=0.0) < IDLE * (end - begin) and sum(used) < ALL_IDLE * (end - begin)

    def _stack(self) -> traceback.StackSummary:
        frame = sys._current_frames().get(self._main or 0)
        return traceback.extract_stack(frame)

    def _end_run(self) -> None:
        """Give the other ranks time to see it too, tell who lags if that is up to this rank, and end the process."""
        time.sleep(3 * self.interval)
        states = self.read_all() if self._published else {self.rank: self.state(stuck=True)}
        if not self._published or self._may_speak(states):
            report = self._report(states)
            print(f"error: no progress for {self.stuck_after:.0f} s: {report['text']}", file=sys.stderr, flush=True)
            if self._published:
                self.folder.append_event("stuck", self.step, **report)
        self._leave()

    def _report(self, states: dict[int, dict[str, Any]]) -> dict[str, Any]:
        if not self._published:
            return own_report(states[self.rank])
        return laggards(states, self.world_size, time.time() - max(ALIVE, 4 * self.interval))

    def _leave(self) -> NoReturn:
        time.sleep(self.interval)  # launchers kill the rest as soon as one rank ends: let the report get out first
        os._exit(STUCK)

    def read_all(self) -> dict[int, dict[str, Any]]:
        """What each rank wrote last; ranks without a readable file are missing."""
        found = {}
        for rank in range(self.world_size):
            try:
                state = outside.read_json(_file(self.folder, rank), outside.MEGABYTE)
            except (OSError, ValueError):
                continue
            if is_state(state):
                found[rank] = state
        return found


def _used_by_others() -> dict[int, float]:
    """Seconds of processor time of the threads of this process, Python's and others, but for the one that asks."""
    own = threading.get_native_id()
    return {one.id: one.user_time + one.system_time for one in psutil.Process().threads() if one.id != own}


def _file(folder: RunFolder, rank: int) -> Path:
    return folder.path / "heartbeat" / f"rank-{rank:05d}.json"


def require_free(folder: RunFolder) -> None:
    """Refuse a folder in which a run of this machine is at work, such as one that was started twice.

    Runs of other machines are not looked for: a host that was cut off may go on for a while, and must not
    keep its run from going on elsewhere.

    Raises:
        CheckpointError: the process that wrote rank 0's heartbeat still lives.
    """
    try:
        state = outside.read_json(_file(folder, 0), outside.MEGABYTE)
        pid, step = int(state["pid"]), int(state["step"])
        if state["host"] != socket.gethostname() or state["phase"] == "ended" or pid == os.getpid():
            return
        process = psutil.Process(pid)
        living = process.status() != psutil.STATUS_ZOMBIE and process.create_time() < state["alive"]
    except (OSError, OverflowError, ValueError, KeyError, TypeError, psutil.Error):
        return  # no heartbeat, or nobody's any more
    if living:
        raise CheckpointError(
            f"output folder {folder.path} is in use: process {pid} of this machine trains in it, at step {step}; let "
            f"it finish, ask it to stop (kill -TERM {pid}), or choose another train.output_dir"
        )
