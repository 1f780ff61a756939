"""A rank's side of the meeting; the only one that the program knows."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pretrain.config import RunConfig
from pretrain.environment import ALONE, Place
from pretrain.errors import LaunchError
from pretrain.exit_codes import FAILED, STOPPED, USER
from pretrain.meeting.hello import Hello, difference, hello
from pretrain.meeting.lines import SECONDS, Lines
from pretrain.meeting.roll_call import TOLD_AFTER, TOLD_EVERY, RollCall
from pretrain.outside import printable
from pretrain.ports import listen, why_not
from pretrain.stopping import StopRequest

if TYPE_CHECKING:
    from pretrain.layout import Layout

NAMES_SECONDS = 60.0
"""For a name that does not resolve: it may be that of a host which is just starting."""
ANSWER_SECONDS = 3.0
"""For rank 0 to answer a rank that wants to stop."""


def meet(place: Place, config: RunConfig, stop: StopRequest) -> Meeting:
    """Come together with all other ranks. From now on until ``Meeting.joined`` a signal ends the process at once.

    Raises:
        LaunchError: the port is taken.
    """
    meeting = Meeting(place, config, stop)
    meeting.come()
    return meeting


class Meeting:
    """Where this rank is between the start of its process and the process group.

    Ends the process by itself when the start fails elsewhere: the main thread may wait in C++.
    """

    def __init__(self, place: Place, config: RunConfig, stop: StopRequest):
        self.place, self.stop = place, stop
        self.patience = config.operation.meet_within
        # Our launcher sets places that are right: then a machine has failed, and the run is to be started again.
        self.supervised = "SMET_LAUNCH_ID" in os.environ
        self.given_up = FAILED if self.supervised else USER
        self.own: Hello = hello(place, config)
        self.go, self.begun = threading.Event(), threading.Event()
        self.trouble = ""
        self._lines: Lines | None = None
        self._first = ""
        self._early: list[dict[str, Any]] = []
        self._leaving = threading.Lock()

    def come(self) -> None:
        """Wait for all, in a loop that signals interrupt."""
        self.stop.watch(self._told_to_stop)
        if self.place.world == 1:
            return
        if self.place.rank == 0 and not self.place.store_is_hosted:
            self._call_the_roll()
        threading.Thread(target=self._take_part, name="meeting", daemon=True).start()
        began, told = time.monotonic(), 0
        first = TOLD_AFTER[0] if self.place.local == 0 else 2 * TOLD_AFTER[0]  # one of a host speaks for the others
        while not self.go.wait(0.2):
            waited = time.monotonic() - began
            if self._lines is not None:
                continue  # rank 0 speaks
            if waited > (min(NAMES_SECONDS, self.patience) if "does not resolve" in self.trouble else self.patience):
                self._leave(self.given_up, [f"{self._waits()}; given up after {waited:.0f} s"])
            if told == 0 and waited > first or told and self.place.local == 0 and waited > told * TOLD_EVERY / 5:
                told += 1
                print(f"waiting: {self._waits()}", file=sys.stderr, flush=True)

    def joining(self) -> None:
        """All is imported; the process group comes next."""
        if self._lines is not None:
            self._lines.send({"phase": "joining"})
        elif self.place.world > 1:
            self._timer = threading.Timer(2 * TOLD_AFTER[0], self._still_joining)
            self._timer.daemon = True
            self._timer.start()

    def joined(self) -> None:
        """The process group stands here; wait until it does on all ranks. From now on a signal is noted only."""
        if self._lines is not None:
            self._lines.send({"phase": "joined"})
            while not self.begun.wait(0.2):
                pass
        with self._leaving:
            self.begun.set()
        self.stop.begin()

    def compare(self, layout: Layout) -> None:
        """What rank 0 does at the meeting, where torchrun has brought the ranks together. Collective.

        Raises:
            LaunchError: a rank differs; on all of them.
        """
        if self.place.store_is_hosted:
            first, *others = layout.gather_objects(self.own)
            for one in others:
                if problem := difference(one, first):
                    raise LaunchError(problem)

    def fail(self, problems: Sequence[str]) -> None:
        """Tell all ranks what this one's user has to mend; rank 0 prints it. Returns if there is nobody to tell."""
        if self._lines is not None and not self.begun.is_set():
            self._lines.send({"failed": list(problems)})
            time.sleep(ANSWER_SECONDS)  # the answer ends this process

    def _call_the_roll(self) -> None:
        port = self.place.port
        try:
            listener = listen(port)
        except OSError as error:
            how = {"torchrun": "--master-port=", "deepspeed": "--master_port "}.get(self.place.source, "MASTER_PORT=")
            problem = why_not(error, port, "--master-port " if self.supervised else how)
            if self.supervised:
                self._leave(FAILED, [problem])  # taken since the launcher looked: the next attempt takes another
            raise LaunchError(problem) from None
        RollCall(listener, self.place, self.own, self.patience, self.given_up, self._hint()).start()

    def _hint(self) -> str:
        if self.place.source == "RANK and WORLD_SIZE":
            world = self.place.world
            return (
                f"; RANK and WORLD_SIZE={world} were set by hand or are left over: start all {world} ranks, or, {ALONE}"
            )
        if self.place.source == "Slurm":
            return "; srun --pty starts a program in the first task only: leave --pty out"
        return ""

    def _waits(self) -> str:
        place, trouble = self.place, self.trouble or "no answer yet"
        where = f"{place.address}:{place.port}"
        if place.store_is_hosted:
            return f"rank {place.rank} waits for torchrun at {where} ({trouble}); if torchrun has ended, {ALONE}"
        if place.rank == 0:
            return (
                f"rank 0 listens on port {place.port} of {socket.gethostname()}, and does not reach itself at {where} "
                f"({trouble}); set MASTER_ADDR to an address of this host"
            )
        return f"rank {place.rank} of {place.world} waits for rank 0 at {where} ({trouble}){self._hint()}"

    def _take_part(self) -> None:
        """The thread: come, listen to rank 0 until the run begins."""
        lines = self._reach()
        if lines is None:
            self.go.set()
            return
        self._lines = lines
        self._listen(lines)
        self._lost()

    def _reach(self) -> Lines | None:
        """A connection on which rank 0 said welcome; None where torchrun's store answers in its place."""
        pause = 0.05
        while True:
            try:
                connection = socket.create_connection((self.place.address, self.place.port), timeout=SECONDS)
                if self.place.store_is_hosted:
                    connection.close()
                    return None
                lines = Lines(connection)
                if (welcome := self._welcome(lines)) is not None:
                    self._first = welcome
                    return lines
                lines.close()
            except socket.gaierror as error:
                self.trouble = f"MASTER_ADDR {self.place.address} does not resolve: {error.strerror}"
            except UnicodeError:
                self.trouble = f"MASTER_ADDR {self.place.address[:80]} does not resolve: it is no host name"
            except TimeoutError:
                self.trouble = "no answer: a wrong address, or a firewall"
            except OSError as error:
                self.trouble = str(error.strerror or error).lower()
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def _welcome(self, lines: Lines) -> str | None:
        """The host of rank 0, if that is who answers."""
        lines.send(self.own)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                messages = lines.receive()
            except TimeoutError:
                break
            if messages is None:
                break
            for number, message in enumerate(messages, 1):
                self._obey(message)
                if "welcome" in message:
                    self._early = messages[number:]  # the word may come with it
                    return str(message["welcome"])
        self.trouble = "what listens there is no rank 0 of a run"
        return None

    def _listen(self, lines: Lines) -> None:
        """Until the run begins, or rank 0 is gone."""
        messages: list[dict[str, Any]] | None = self._early
        while messages is not None:
            for message in messages:
                self._obey(message)
                if "begin" in message:
                    self.begun.set()
                    return
            with contextlib.suppress(TimeoutError):
                messages = []
                messages = lines.receive()

    def _obey(self, message: dict[str, Any]) -> None:
        if "refused" in message:
            self._leave(USER, [str(message["refused"])])
        if "end" in message:
            self._leave(int(message["end"]), [])  # rank 0 has said why
        if "go" in message:
            self.go.set()

    def _lost(self) -> None:
        """The connection is closed; fine if the run has begun."""
        if self.begun.is_set():
            return
        time.sleep(0.5)  # a signal to all ranks may just be on its way to this one
        if self.stop.reason:
            self._leave(STOPPED, [])
        text = f"rank 0 on {self._first} ended while the run was starting; its own output says why"
        speaks = 1 if self._first == self.own["host"] else 0  # of each host one
        self._leave(FAILED, [text] if self.place.local == speaks else [])

    def _told_to_stop(self, reason: str) -> None:
        """In a thread, whatever the main one does: C++ lets no handler run."""
        if self._lines is not None and self._lines.send({"stop": reason}):
            self.begun.wait(ANSWER_SECONDS)  # or the answer ends this process
        elif self.place.store_is_hosted:
            self.begun.wait(ANSWER_SECONDS)  # torchrun tells all ranks: those that can still join do, and stop together
        with self._leaving:
            if not self.begun.is_set():
                text = f"{reason}: ended while starting; nothing was trained yet"
                self._leave(STOPPED, [text] if self.place.rank == 0 or self._lines is None else [])

    def _still_joining(self) -> None:
        if not self.begun.is_set() and self.place.local == 0:
            print(f"waiting: {self._waits()}", file=sys.stderr, flush=True)

    @staticmethod
    def _leave(code: int, problems: Sequence[str]) -> NoReturn:
        mark = "" if code == STOPPED else "error: "
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            for problem in problems:
                print(f"{mark}{printable(problem)}", file=sys.stderr, flush=True)
        os._exit(code)
