"""Processes that come to the meeting of a run as its ranks do, without torch: a start takes a fifth of a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.distributed import free_port

ROOT = Path(__file__).parent.parent.parent
CLEARED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")

PROGRAM = """
import sys, time
from pretrain.config import load_config
from pretrain.environment import adopt_environment
from pretrain.errors import UserError
from pretrain.meeting import meet
from pretrain.meeting import hello, member, roll_call
from pretrain.stopping import REQUEST
early, late = sys.argv[2:4]
REQUEST.install()
exec(early)
try:
    place = adopt_environment()
    meeting = meet(place, load_config(sys.argv[1], sys.argv[4:]), REQUEST)
except UserError as error:
    sys.exit(f"error: {error}")
print("met", flush=True)
exec(late)
meeting.joining()
meeting.joined()
print("begun", flush=True)
exec("" if len(REQUEST.reason) == 0 else "print('noted', flush=True)")
"""


class Member:
    """One rank; ``early`` is run ahead of the meeting, ``late`` when all have come. Its screen goes to files."""

    def __init__(self, config: str, early: str = "", late: str = "", overrides: tuple[str, ...] = (), **variables: Any):
        inherited = {name: value for name, value in os.environ.items() if name not in CLEARED}
        given = {name: str(value) for name, value in variables.items()}
        handle, self.out = tempfile.mkstemp(dir=Path(config).parent)
        other, self.err = tempfile.mkstemp(dir=Path(config).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, config, early, late, *overrides],
            env={**inherited, "PYTHONPATH": str(ROOT), **given}, cwd=ROOT, stdout=handle, stderr=other,
        )  # fmt: skip
        os.close(handle)
        os.close(other)

    def await_text(self, text: str, seconds: float = 30.0) -> None:
        """Until ``text`` is on its screen."""
        deadline = time.monotonic() + seconds
        while text not in Path(self.out).read_text() + Path(self.err).read_text():
            assert time.monotonic() < deadline, (Path(self.out).read_text(), Path(self.err).read_text())
            time.sleep(0.02)

    def end(self, timeout: float = 40.0) -> tuple[int, list[str], list[str]]:
        """Exit code, lines of stdout and of stderr."""
        try:
            self.process.wait(timeout)
        finally:
            self.process.kill()
        return self.process.wait(), Path(self.out).read_text().splitlines(), Path(self.err).read_text().splitlines()


def start(config: str, world: int, absent: tuple[int, ...] = (), **each: dict[str, Any]) -> list[Member]:
    """The ranks of a run; ``rank1={...}`` gives one its own arguments."""
    port = free_port()
    place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Member(config, **{**place, "RANK": rank, "LOCAL_RANK": rank, **each.get(f"rank{rank}", {})})
        for rank in range(world)
        if rank not in absent
    ]


def stop(member: Member, text: str, number: int = signal.SIGTERM) -> float:
    """Signal it when ``text`` is on its screen, and return the seconds until it has ended."""
    member.await_text(text)
    member.process.send_signal(number)
    began = time.monotonic()
    member.process.wait(timeout=20)
    return time.monotonic() - began
