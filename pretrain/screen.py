"""The screen of every command-line program: one that cannot show a character, is full, or has gone away."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from pretrain.errors import UserError, problems_of
from pretrain.exit_codes import USER
from pretrain.outside import printable

CLOSED = 141
"""Exit code where whoever read the output went away, as ``| head`` does: what a shell gives for SIGPIPE."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: what a shell gives for SIGINT."""


def on_screen(main: Callable[[], int]) -> int:
    """Call ``main``, and return the exit code of its program.

    A character that the terminal's encoding lacks is shown by its number (``\\u2192``); a closed pipe ends the program
    without a word, with ``CLOSED``; an output or a file that cannot be written (a full disk) is one line, and ``USER``.
    """
    screens = [screen for name in ("stdout", "stderr") if (screen := _adopt(name)) is not None]
    try:
        try:
            return main()
        finally:
            for screen in screens:
                screen.flush()  # here, where an error can still be told; the interpreter's own end could not
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("error: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except OSError as error:
        broken = [screen for screen in screens if screen.trouble is not None]
        if not broken and error.filename is not None:
            return refuse(error)  # about a file that whoever called has named: a full disk, a folder without permission
        if not broken:
            raise
        for screen in broken:
            screen.discard()
        if isinstance(broken[0].trouble, BrokenPipeError):
            return CLOSED
        if broken[0].trouble is error:
            with contextlib.suppress(OSError):
                print(f"error: the output cannot be written ({error.strerror}); redirect it elsewhere", file=sys.stderr)
        return USER


def refuse(error: UserError | OSError) -> int:
    """Say on stderr what is wrong with what was asked for, a line each; returns the exit code for that."""
    for problem in problems_of(error):
        print(f"error: {printable(problem)}", file=sys.stderr, flush=True)
    return USER


def outlive_screen() -> None:
    """From now on the program goes on when nobody reads its stdout any more, and says so once on stderr.

    Nor does it end when stderr cannot be written: after a hangup neither can.
    """
    for screen in (sys.stdout, sys.stderr):
        if isinstance(screen, Screen):
            screen.lasting = True


class Screen(io.TextIOWrapper):
    """stdout or stderr that remembers what kept it from being written."""

    trouble: OSError | None = None
    lasting = False
    """Whether trouble is told once, and no reason to end."""

    def write(self, text: str) -> int:
        """Write; see ``lasting``."""
        self._try(lambda: super(Screen, self).write(text))
        return len(text)

    def flush(self) -> None:
        """Flush; see ``lasting``."""
        self._try(lambda: super(Screen, self).flush())

    def discard(self) -> None:
        """Let whatever is still written vanish, with what the buffer holds."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            if not self.lasting:
                self.trouble = error
                raise
            self.discard()
            if self is sys.stderr:
                return
            with contextlib.suppress(OSError):
                print(
                    f"warning: stdout cannot be written any more ({error.strerror}); the run goes on, and "
                    "metrics.jsonl in its folder tells how",
                    file=sys.stderr,
                    flush=True,
                )


def _adopt(name: str) -> Screen | None:
    """Make ``sys.stdout`` or ``sys.stderr`` a ``Screen``; None where it is closed, or no file."""
    stream: TextIO | None = getattr(sys, name)
    if isinstance(stream, Screen):
        return stream
    if not isinstance(stream, io.TextIOWrapper):
        return None
    encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
    screen = Screen(
        stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=lines, write_through=through
    )
    setattr(sys, name, screen)
    setattr(sys, f"__{name}__", screen)
    return screen
