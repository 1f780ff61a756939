"""Rank 0's side of the meeting: who has come, who is missing, and the word for all."""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

from pretrain.command import told
from pretrain.environment import Place
from pretrain.exit_codes import FAILED, STOPPED, USER
from pretrain.meeting.hello import Hello, difference, is_of_another_run, is_there, is_whole, name_of, shares_a_gpu
from pretrain.meeting.lines import Lines, ranks_in_words
from pretrain.outside import printable

TOLD_AFTER = (3.0, 30.0, 120.0)
"""Seconds of waiting after which it is told for whom; and every ``TOLD_EVERY`` seconds from then on."""
TOLD_EVERY = 300.0
JOINED_AFTER = 10.0
"""Seconds from the word until ranks that have not joined are told."""


@dataclass
class Peer:
    """One connection."""

    lines: Lines
    hello: Hello | None = None
    phase: str = "came"


class RollCall(threading.Thread):
    """Listens from the start of rank 0 until all ranks have joined, or the start has failed.

    Args:
        listener: where ranks come to.
        own: what rank 0 tells of itself.
        patience: seconds until all have to be there.
        given_up: exit code if they are not.
        hint: what to look at if somebody is missing.
    """

    def __init__(self, listener: socket.socket, place: Place, own: Hello, patience: float, given_up: int, hint: str):
        super().__init__(name="roll call", daemon=True)
        self.place, self.own, self.hint = place, own, hint
        self.patience, self.given_up = patience, given_up
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._peers: list[Peer] = []
        self._began = self._told = time.monotonic()
        self._count = 0
        self._gone = self._over = False

    @property
    def here(self) -> dict[int, Peer]:
        """rank -> connection of those that have come."""
        return {peer.hello["rank"]: peer for peer in self._peers if peer.hello is not None}

    def run(self) -> None:
        """Until it is over."""
        try:
            self._selector.register(self._listener, selectors.EVENT_READ)
            while not self._over:
                for key, _ in self._selector.select(timeout=0.2):
                    if key.data is None:
                        self._accept()
                    elif key.data in self._peers:
                        self._hear(key.data)
                if not self._over:
                    self._tell(time.monotonic())
        except Exception:
            traceback.print_exc()
            os._exit(FAILED)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        peer = Peer(Lines(connection))
        self._peers.append(peer)
        self._selector.register(peer.lines, selectors.EVENT_READ, peer)

    def _hear(self, peer: Peer) -> None:
        messages = peer.lines.receive()
        if messages is None:
            self._drop(peer)
            if peer.hello is not None and not self._over:
                self._end(FAILED, f"{name_of(peer.hello)} ended while the run was starting; its own output says why")
            return
        for message in messages:
            if self._over:
                return
            if peer.hello is None:
                self._greet(peer, message)
            elif "stop" in message:
                self._end(STOPPED, f"{message['stop']}: ended while starting; nothing was trained yet")
            elif "failed" in message:
                where = f" ({name_of(peer.hello)})" if self.place.world > 1 else ""
                self._end(USER, *(f"{problem}{where}" for problem in message["failed"]))
            elif "phase" in message:
                peer.phase = str(message["phase"])
                if self._gone and all(other.phase == "joined" for other in self.here.values()):
                    self._tell_all({"begin": True})
                    self._over = True

    def _greet(self, peer: Peer, message: dict[str, Any]) -> None:
        if not is_whole(message):
            self._drop(peer)  # a stranger
            return
        others = [other.hello for other in self.here.values() if other.hello is not None]
        refused = is_there(message, others)
        if not refused and is_of_another_run(message, self.own):
            folder = self.own["settings"]["train"]["output_dir"]
            refused = (
                f"{name_of(message)} came to {self.place.address}:{self.place.port}, where the run in {folder} meets"
            )
        if refused:
            peer.lines.send({"refused": refused})
            self._drop(peer)
            self._say(f"refused: {refused}")
            return
        if problem := difference(message, self.own) or shares_a_gpu(message, others):
            peer.hello = message
            self._end(USER, problem)
            return
        peer.hello = message
        peer.lines.send({"welcome": self.own["host"], "pid": self.own["pid"]})
        if len(self.here) == self.place.world:
            self._selector.unregister(self._listener)
            self._listener.close()  # torch's own store takes the port next
            self._gone, self._began, self._count = True, time.monotonic(), 0
            self._tell_all({"go": True})

    def _drop(self, peer: Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.lines)
        peer.lines.close()

    def _tell_all(self, message: dict[str, Any]) -> None:
        """Rank 0 last: its process ends with it."""
        for _, peer in sorted(self.here.items(), reverse=True):
            peer.lines.send(message)

    def _end(self, code: int, *problems: str) -> None:
        """Say why, then end all ranks: launchers kill those that are left as soon as one has ended."""
        self._over = True
        for problem in problems:
            self._say(problem if code == STOPPED else f"error: {problem}")
        self._tell_all({"end": code})
        if 0 not in self.here:
            os._exit(code)

    def _tell(self, now: float) -> None:
        waited = now - self._began
        if not self._gone and waited > self.patience:
            text = f"{self._missing()}, and did not within {self.patience:.0f} s (operation.meet_within)"
            self._end(self.given_up, f"{text}{self.hint}")
            return
        times = (JOINED_AFTER, *TOLD_AFTER[1:]) if self._gone else TOLD_AFTER
        due = (
            times[self._count] if self._count < len(times) else times[-1] + TOLD_EVERY * (self._count - len(times) + 1)
        )
        if waited < due or (not self._gone and 0 not in self.here):
            return  # a rank 0 that does not reach itself speaks for itself
        self._count += 1
        if not self._gone:
            self._say(f"waiting: {self._missing()}{self.hint}")
            return
        slow = {rank: peer for rank, peer in self.here.items() if peer.phase != "joined"}
        loading = [rank for rank, peer in slow.items() if peer.phase == "came"]
        if loading:
            self._say(f"waiting: all {self.place.world} ranks are here; {ranks_in_words(loading)} still import torch")
            return
        self._say(
            f"waiting: all {self.place.world} ranks are here, and connect to each other ({ranks_in_words(list(slow))} "
            f"not done after {waited:.0f} s); if this goes on, hosts do not reach each other: name the network with "
            f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME (`{told('launch', '--interface')}`), and see the firewall"
        )

    def _missing(self) -> str:
        here = self.here
        missing = [rank for rank in range(self.place.world) if rank not in here]
        seen = [f"{rank} on {here[rank].hello['host']}" for rank in sorted(here)[:4]]  # type: ignore[index]
        more = f" and {len(here) - 4} more" if len(here) > 4 else ""
        return (
            f"{ranks_in_words(missing)} of {self.place.world} did not come yet to {self.place.address}:"
            f"{self.place.port}; here: {', '.join(seen) or 'none'}{more}"
        )

    @staticmethod
    def _say(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)
