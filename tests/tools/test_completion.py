"""Completion of ``smet``, by the keys that a person presses in bash and in zsh."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import ROOT
from tests.tools.completion_words import content
from tools.completion import WORDS_FILE, script

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "bind 'set enable-bracketed-paste off'"),
    "zsh": (["zsh", "-f", "-i"], "unsetopt ZLE_BRACKETED_PASTE; autoload -Uz compinit; compinit -u -D"),
}
PRESSED = {
    "pla\t": ["plan"],
    "corpus ver\t": ["corpus", "verify"],
    "tok\ttr\t--vo\t": ["tokenizer", "train", "--vocab-size"],
    "plan --world\t": ["plan", "--world-size"],
    "launch --launcher pd\t": ["launch", "--launcher", "pdsh"],
    "launch st\t--js\t": ["launch", "status", "--json"],
    "bench ren\t": ["bench", "render"],
    "train my-run\ttrain.stop\t7": ["train", "my-run.yaml", "train.stop_at=7"],
    "plot my-r\t": ["plot", "my-run.yaml"],
    "import --no-such\t": ["import", "--no-such"],
}


class Terminal:
    """An interactive shell on a terminal of its own.

    Args:
        shell: ``bash`` or ``zsh``.
        folder: its working folder, with its ``bin`` first on the search path.
    """

    def __init__(self, shell: str, folder: Path):
        command, prepare = START[shell]
        found = shutil.which(command[0])
        assert found, f"no {shell} on this machine; launch/setup_env.sh --dev installs it"
        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"}
            os.execve(found, command, environment)
        self.run(f"PS1='' PS2=''; {prepare}")
        # Read as its users have it; from here on the command shows the words that it was given.
        self.run(f"source <(smet completion {shell}); smet() {{ printf '<%s>' \"$@\"; }}")

    def run(self, line: str) -> str:
        """Type ``line`` and Enter; what the screen shows until the shell is ready again."""
        os.write(self.screen, line.encode() + b"\n")
        os.write(self.screen, b"echo rea''dy\n")
        shown, limit = "", time.monotonic() + 60
        while "ready" not in shown:
            assert time.monotonic() < limit, f"after {line!r} the screen shows {shown!r}"
            if select.select([self.screen], [], [], 1)[0]:
                shown += os.read(self.screen, 65536).decode(errors="replace")
        return shown

    def close(self) -> None:
        """End the shell."""
        os.close(self.screen)
        os.waitpid(self.process, 0)


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "my-run.yaml").write_text("")
    (folder / "bin").mkdir()
    (folder / "bin" / "smet").write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools "$@"\n')
    (folder / "bin" / "smet").chmod(0o755)
    opened = Terminal(request.param, folder)
    yield opened
    opened.close()


@pytest.mark.parametrize("pressed", PRESSED)
def test_what_is_begun_is_completed(terminal: Terminal, pressed: str) -> None:
    shown = terminal.run(f"smet {pressed}")
    assert re.findall(r"<([^<>]*)>", shown) == PRESSED[pressed], shown


def test_what_is_completed_is_what_the_parsers_take() -> None:
    stored = WORDS_FILE.read_text(encoding="utf-8")
    assert stored == content(), "python -m tests.tools.completion_words writes it anew"


@pytest.mark.parametrize("shell", START)
def test_the_script_is_one_that_the_shell_reads(shell: str) -> None:
    done = subprocess.run([shell, "-n"], input=script(shell), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
