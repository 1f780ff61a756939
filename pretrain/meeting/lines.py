"""A connection that carries JSON objects, a line each."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

LIMIT = 1 << 24
"""Bytes of one line: settings with many sources are some ten thousand."""
SECONDS = 5.0
"""Until an end that takes nothing counts as gone."""


class Lines:
    """One end of it. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SECONDS)
        self._socket = connection
        self._rest = b""
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Whether the other end was there to take it."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come, perhaps nothing whole yet; None where the other end is gone, or speaks otherwise.

        Raises:
            TimeoutError: nothing came within ``SECONDS``.
        """
        try:
            got = self._socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            return None
        *whole, self._rest = (self._rest + got).split(b"\n")
        if not got or len(self._rest) > LIMIT:
            return None
        try:
            found = [json.loads(line) for line in whole]
        except (ValueError, RecursionError):
            return None
        return found if all(isinstance(one, dict) for one in found) else None

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def ranks_in_words(ranks: list[int]) -> str:
    """``rank 3`` or ``ranks 1-3, 7``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    more = f" and {len(words) - 8} more groups" if len(words) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(words[:8])}{more}"
