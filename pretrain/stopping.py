"""Ending early on request: signals and time limits raise a flag, which the train loop looks at together.

A handler only takes note. The rank it ran on asks all others at the next poll (before a step, and before each batch
of an evaluation), so that every rank stops at the same place, saves, and leaves with exit code 75. Until the run
begins there is nothing to save, and the main thread may wait in C++, where Python's handlers do not run: then a thread
acts on a signal at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGINT": signal.SIGINT, "SIGHUP": signal.SIGHUP}
"""SIGTERM: launchers and clusters; SIGUSR1: Slurm's warning ahead of the time limit; SIGINT: Ctrl-C; SIGHUP: the
terminal or the connection is gone (not so under ``nohup``, which has it ignored)."""


class StopRequest:
    """Why this process should stop, once there is a reason.

    Attributes:
        reason: empty, or what asked for it.
        deadline: time (``time.time()``) from which on running out of time is a reason.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.deadline = float("inf")
        self._wakeup: int | None = None

    def install(self) -> None:
        """Take note of ``SIGNALS`` from now on; call it in the main thread. A second Ctrl-C ends at once."""
        for number in SIGNALS.values():
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def watch(self, act: Callable[[str], None]) -> None:
        """From now on until ``begin`` call ``act`` with a signal's name, in a thread, as soon as it comes."""
        reader, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._act, args=(reader, act), name="signals", daemon=True).start()

    def begin(self) -> None:
        """The run begins, or has failed to: signals are noted only."""
        if self._wakeup is None:
            return
        signal.set_wakeup_fd(-1)
        os.close(self._wakeup)  # which ends the thread
        self._wakeup = None
        if self.reason:
            self._tell(self.reason)

    def _act(self, reader: int, act: Callable[[str], None]) -> None:
        if self.reason:  # came before the watch
            act(self.reason)
        while number := os.read(reader, 1):
            if number[0] in SIGNALS.values():
                self.reason = self.reason or signal.Signals(number[0]).name
                act(self.reason)
        os.close(reader)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        starting = self._wakeup is not None
        if number == signal.SIGINT and self.reason and not starting:
            raise KeyboardInterrupt
        self.reason = self.reason or name
        if not starting:
            self._tell(name)

    def _tell(self, name: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            again = "; once more to end at once" if name == "SIGINT" else ""
            # print() is not safe here: the handler may interrupt another one
            with contextlib.suppress(OSError, AttributeError, ValueError):  # no screen
                os.write(sys.stdout.fileno(), f"{name}: stopping after this step{again}\n".encode())

    def limit(self, minutes: float, margin: float, environ: Mapping[str, str] = os.environ) -> None:
        """Stop ``margin`` seconds before ``minutes`` (0 = no limit) from now, or before a Slurm job's end."""
        ends = [time.time() + 60 * minutes] if minutes else []
        if (end := environ.get("SLURM_JOB_END_TIME", "")).isdigit():
            ends.append(float(end))
        self.deadline = min(ends, default=float("inf")) - margin

    def why(self) -> str:
        """The reason to stop; empty as long as there is none."""
        if not self.reason and time.time() >= self.deadline:
            self.reason = "time limit"
        return self.reason


REQUEST = StopRequest()
"""This process's: signals belong to a process as a whole."""
