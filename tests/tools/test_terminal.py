"""Tables of commands: drawn on a terminal, Markdown everywhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.pages import ROOT
from tools.terminal import parts

TEXT = "a line [with] | a bar\n\n| per rank | this run |\n| --- | ---: |\n| weights | 7 |\n| **all** | 70 |\nend"
SHOW = f"from tools.terminal import show\nshow({TEXT!r})"


def shown(**environment: str) -> str:
    """What a terminal of 80 columns shows."""
    screen, of_program = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment}
    done = subprocess.Popen([sys.executable, "-c", SHOW], cwd=ROOT, stdout=of_program, env=variables)
    os.close(of_program)
    text = b""
    try:
        while piece := os.read(screen, 65536):
            text += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(screen)
    assert done.wait(60) == 0
    return re.sub(r"\x1b\[[\d;]*m", "", text.decode().replace("\r\n", "\n"))


def test_a_terminal_shows_tables_and_a_pipe_gets_markdown() -> None:
    piped = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True)
    assert piped.stdout == f"{TEXT}\n" == shown(TERM="dumb")
    lines = shown().splitlines()
    assert lines[0] == "a line [with] | a bar" and lines[-1] == "end"
    (heads,) = (line for line in lines if "per rank" in line)
    (weights,) = (line for line in lines if "weights" in line)
    assert "|" not in heads + weights and heads.rstrip().endswith("this run"), lines
    assert weights.rstrip().endswith(" 7") and len(weights.rstrip()) == len(heads.rstrip()), "numbers end together"


def test_parts_are_lines_and_tables_in_their_order() -> None:
    first, empty, table, last = parts(TEXT)
    assert (first, empty, last) == ("a line [with] | a bar", "", "end")
    assert table == [["per rank", "this run"], ["---", "---:"], ["weights", "7"], ["**all**", "70"]]
    assert list(parts("| a | b |")) == ["| a | b |"], "no rule below it: no table"
    assert list(parts("| a |\n| --- |")) == [[["a"], ["---"]]]
