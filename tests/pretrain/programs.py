"""The program on real processes that a test may kill, starve or disturb.

    with Program(tmp_path / "screen", 2, [run_file]) as program:
        program.kill()

Its ranks are forks of a process that has imported everything, so a start takes a second and not ten.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.distributed import _context, free_port

Prepare = Callable[..., Any]


class Program:
    """``python -m pretrain ARGUMENTS`` on ``ranks`` processes; what they print goes to files.

    Args:
        screen: folder for the output of each rank.
        prepare: top-level function and arguments, called in each rank before the program starts.
    """

    def __init__(self, screen: Path, ranks: int, arguments: list[str], prepare: tuple[Any, ...] = ()):
        screen.mkdir(parents=True, exist_ok=True)
        self.screen, port = screen, free_port()
        self.processes = [
            _context().Process(target=_main, args=(rank, ranks, port, str(screen), arguments, prepare))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        """Whether no rank has ended."""
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """SIGKILL every rank, and wait until they are gone."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def wait(self, timeout: float = 120.0) -> list[int]:
        """Exit codes by rank; fails, and ends them, if they take longer."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        stuck = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        assert not stuck, f"ranks {stuck} hang: {[self.err(rank) for rank in stuck]}"
        return [process.exitcode for process in self.processes]

    def out(self, rank: int = 0) -> str:
        """What a rank has printed on stdout."""
        return self._text(f"{rank}.out")

    def err(self, rank: int = 0) -> str:
        """What a rank has printed on stderr."""
        return self._text(f"{rank}.err")

    def errors(self) -> list[str]:
        """Lines of stderr of all ranks."""
        return [line for rank in range(len(self.processes)) for line in self.err(rank).splitlines()]

    def _text(self, name: str) -> str:
        path = self.screen / name
        return path.read_text() if path.exists() else ""


def _main(rank: int, ranks: int, port: int, screen: str, arguments: list[str], prepare: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test leaves nobody behind
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{screen}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    place |= {"LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({key: str(value) for key, value in place.items()})
    import deepspeed.ops

    from pretrain.__main__ import main

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # slow to build, never needed
    if prepare:
        prepare[0](*prepare[1:])
    sys.exit(main(arguments))
