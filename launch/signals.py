"""What this process was told by signals; they are acted upon where it is convenient."""

from __future__ import annotations

import signal
from types import FrameType


class Signals:
    """Signals received so far.

    SIGHUP says that the terminal or the connection is gone; under ``nohup``, which has it ignored, it stays so.
    Slurm's warning (SIGUSR1) and its SIGTERM later on are one request; only a second SIGTERM or SIGINT is urgent.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    def install(self) -> None:
        """Collect from now on; call it in the main thread."""
        for number in self.NUMBERS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))

    @property
    def first(self) -> signal.Signals | None:
        """The request to save and stop, if there was one."""
        return self.received[0] if self.received else None

    @property
    def urgent(self) -> bool:
        """Whether the run is to end at once."""
        return sum(number in (signal.SIGTERM, signal.SIGINT) for number in self.received) > 1
