"""Running a short program on a host: here, over ssh, or inside a Slurm job. Every call ends in bounded time."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pretrain import outside

T = TypeVar("T")

PROGRAMS = Path(__file__).parent / "on_host"
CONNECT_SECONDS = 8


@dataclass(frozen=True)
class Answer:
    """What came back from a host."""

    value: dict[str, Any] | None
    """The JSON object that the program printed last, if any."""
    error: str = ""
    """Why there is none, in one line."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How hosts are reached.

    Attributes:
        kind: ``local``, ``ssh`` or ``srun``.
        python: of the run, the same path on every host.
        ssh: the ssh command with the user's options.
        variables: environment of the programs over there.
    """

    kind: str
    python: str
    ssh: tuple[str, ...] = ("ssh",)
    variables: tuple[tuple[str, str], ...] = ()

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """What runs ``words`` on ``host``."""
        given = ["env", *(f"{name}={value}" for name, value in self.variables)] if self.variables else []
        line = [*given, *words]
        if self.kind == "local":
            return line
        if self.kind == "srun":
            return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--export=ALL", *line]
        patience = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "LogLevel=ERROR"]
        alive = ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        return [*self.ssh, *patience, *alive, host, " ".join(shlex.quote(word) for word in line)]

    def ask(self, host: str, program: str, task: dict[str, Any], timeout: float) -> Answer:
        """Run ``launch/on_host/<program>.py`` on ``host`` with ``task``; ``timeout`` in seconds."""
        words = [self.python, "-", json.dumps(task)]
        return self._answer(host, words, (PROGRAMS / f"{program}.py").read_text(encoding="utf-8"), timeout)

    def reachable(self, host: str, timeout: float = CONNECT_SECONDS + 4.0) -> str:
        """Empty if ``host`` runs commands; else why not."""
        answer = self._answer(host, ["echo", "{}"], "", timeout)
        return answer.error

    def _answer(self, host: str, words: Sequence[str], text: str, timeout: float) -> Answer:
        try:
            done = subprocess.run(
                self.command(host, words),
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return Answer(None, f"no answer within {timeout:.0f} s")
        except OSError as error:
            return Answer(None, f"{self.command(host, words)[0]} cannot be started: {error.strerror}")
        try:
            value = outside.parse_json(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            value = None
        if not isinstance(value, dict):
            last = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no output"])[-1]
            return Answer(None, f"exit code {done.returncode}: {outside.printable(last)}")
        return Answer(value)


def on_all(names: Sequence[str], ask: Callable[[str], T]) -> dict[str, T]:
    """``ask`` for every host at once; host -> answer."""
    with ThreadPoolExecutor(max_workers=max(1, min(64, len(names)))) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))
