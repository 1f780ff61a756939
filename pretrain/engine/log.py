"""What DeepSpeed says: all of it in a file of the run folder, warnings and errors on the screen too."""

from __future__ import annotations

import logging
from pathlib import Path

from pretrain import outside

NAME = "DeepSpeed"
"""Of its logger. Its own handler, which writes on the screen, is set to warnings."""
MANY = 10_000
"""Lines that are kept until there is a run folder to write them into."""


class EngineLog(logging.Handler):
    """Takes what DeepSpeed logs, from INFO up, into ``logs/engine-rank0.log`` of the run folder.

    Until ``open`` lines are kept in memory. A rank of which nothing is said makes no file.
    """

    def __init__(self, folder: Path, rank: int):
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("[%(asctime)s] [%(levelname)s] [%(filename)s:%(lineno)d] %(message)s"))
        self.path = folder / f"engine-rank{rank}.log"
        self.lines = 0
        """Lines that were taken so far."""
        self._kept: list[str] | None = []
        self._broken = False

    def open(self) -> None:
        """The run folder is there: write what was kept, and from now on at once."""
        kept, self._kept = self._kept or [], None
        self._write("".join(kept))

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self.lines += 1
        line = outside.printable(self.format(record)) + "\n"
        if self._kept is None:
            self._write(line)
        elif len(self._kept) < MANY:
            self._kept.append(line)

    def _write(self, text: str) -> None:
        if not text or self._broken:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with outside.open_own(self.path, "a") as file:
                file.write(text)
        except OSError as error:
            self._broken = True
            print(f"warning: {self.path} cannot be written ({error.strerror}); what DeepSpeed says is lost", flush=True)

    def describe(self) -> str:
        """For the first lines of a run."""
        return f"{self.lines} lines of DeepSpeed in {self.path}; its warnings and errors are shown here too"


_listening: list[tuple[EngineLog, int]] = []
"""The log that takes lines, one at a time per process, and the level of the logger before."""


def listen(folder: Path, rank: int) -> EngineLog:
    """From now on a log of ``rank`` in ``folder`` takes what DeepSpeed says, in place of an earlier one."""
    stop_listening()
    logger, log = logging.getLogger(NAME), EngineLog(folder, rank)
    _listening.append((log, logger.level))
    for handler in logger.handlers:  # what the logger let through so far is what they show from now on
        handler.setLevel(max(handler.level, logger.level))
    logger.setLevel(min(logging.INFO, logger.level or logging.INFO))
    logger.addHandler(log)
    return log


def stop_listening() -> None:
    """Leave DeepSpeed's logger as it was."""
    while _listening:
        log, level = _listening.pop()
        logging.getLogger(NAME).removeHandler(log)
        logging.getLogger(NAME).setLevel(level)
