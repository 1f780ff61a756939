"""Heartbeats and the watchdog: who is where in the run, and an end to waiting for a rank that will not come.

Each rank's thread writes ``heartbeat/rank-00003.json`` every few seconds. When the main thread of a rank has not
moved for ``stuck_after`` seconds, its watchdog writes that thread's stack beside it. In a stuck run every rank gets
there, because all wait for the one that lags; the first rank that is still alive names it, and the processes end with
exit code 70. Nothing is written before the run folder is this run's; until then each rank speaks for itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from pretrain.errors import CheckpointError
from pretrain.exit_codes import STUCK
from pretrain.run_folder import RunFolder, write_atomically

WAITING = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")
"""A main thread whose innermost frames are in these files waits for other ranks."""


class Heartbeat:
    """One rank's signs of life.

    Args:
        folder: the run folder, shared by all hosts.
        rank: this process among all.
        world_size: number of processes.
        interval: seconds between two writes.
        stuck_after: seconds without progress that count as stuck; 0 = never.
    """

    def __init__(self, folder: RunFolder, rank: int, world_size: int, interval: float, stuck_after: float):
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.interval, self.stuck_after = interval, stuck_after
        self.phase, self.step = "starting", 0
        self.progress, self.moved = 0, time.time()
        self._main = threading.main_thread().ident
        self._published = False
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
            stuck = 0 < self.stuck_after < time.time() - self.moved
            self._write(stuck)
            if stuck:
                self._end_run()

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
            content["waiting"] = any(place in frame.filename for frame in stack[-4:] for place in WAITING)
            content["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in stack]
        return content

    def _stack(self) -> traceback.StackSummary:
        frame = sys._current_frames().get(self._main or 0)
        return traceback.extract_stack(frame)

    def _end_run(self) -> None:
        """Give the other ranks time to see it too, tell who lags if that is up to this rank, and end the process."""
        time.sleep(3 * self.interval)
        states = self.read_all() if self._published else {self.rank: self.state(stuck=True)}
        alive = [rank for rank, state in states.items() if state.get("stuck")]
        if self.rank == min(alive, default=self.rank):
            report = laggards(states, self.world_size) if self._published else _own(states[self.rank])
            print(f"error: no progress for {self.stuck_after:.0f} s: {report['text']}", file=sys.stderr, flush=True)
            if self._published:
                self.folder.append_event("stuck", self.step, **report)
        time.sleep(self.interval)  # launchers kill the rest as soon as one rank ends: let the report get out first
        os._exit(STUCK)

    def read_all(self) -> dict[int, dict[str, Any]]:
        """What each rank wrote last; ranks without a readable file are missing."""
        found = {}
        for rank in range(self.world_size):
            try:
                found[rank] = json.loads(_file(self.folder, rank).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
        return found


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
        state = json.loads(_file(folder, 0).read_text(encoding="utf-8"))
        pid, step = int(state["pid"]), int(state["step"])
        if state["host"] != socket.gethostname() or state["phase"] == "ended" or pid == os.getpid():
            return
        process = psutil.Process(pid)
        living = process.status() != psutil.STATUS_ZOMBIE and process.create_time() < state["alive"]
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return  # no heartbeat, or nobody's any more
    if living:
        raise CheckpointError(
            f"output folder {folder.path} is in use: process {pid} of this machine trains in it, at step {step}; let "
            f"it finish, ask it to stop (kill -TERM {pid}), or choose another train.output_dir"
        )


def laggards(states: dict[int, dict[str, Any]], world_size: int) -> dict[str, Any]:
    """Which ranks hold the others up, why that is thought, and where they are.

    Ranks that show no sign of life come first, then those that got least far, then, among equals, those that
    do not wait for others.
    """
    missing = [rank for rank in range(world_size) if rank not in states]
    silent = [rank for rank, state in states.items() if not state.get("stuck")]
    if missing or silent:
        ranks, why = missing + silent, "shows no sign of life (process gone, frozen, or host cut off)"
    else:
        least = min(state["progress"] for state in states.values())
        ranks = [rank for rank, state in states.items() if state["progress"] == least]
        busy = [rank for rank in ranks if not states[rank].get("waiting")]
        if len(ranks) < world_size:
            why = "got least far"
        elif busy and len(busy) < world_size:
            ranks, why = busy, "does not wait for the others"
        else:
            why = "all ranks are at the same place; see the stacks in heartbeat/"
    places = [_place(rank, states.get(rank)) for rank in ranks[:8]]
    return {"ranks": ranks, "why": why, "text": f"{'; '.join(places)}: {why}", "stacks": _stacks(ranks, states)}


def _own(state: dict[str, Any]) -> dict[str, Any]:
    why = "waits for others" if state["waiting"] else "does not wait for others"
    return {"text": f"{_place(state['rank'], state)}: {why}; at {state['stack'][-1]}"}


def _place(rank: int, state: dict[str, Any] | None) -> str:
    if state is None:
        return f"rank {rank}, which never wrote a heartbeat"
    return f"rank {rank} on {state['host']} (pid {state['pid']}) in {state['phase']} of step {state['step'] + 1}"


def _stacks(ranks: list[int], states: dict[int, dict[str, Any]]) -> dict[str, list[str]]:
    return {str(rank): states[rank]["stack"][-12:] for rank in ranks[:4] if "stack" in states.get(rank, {})}
