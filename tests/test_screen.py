"""What every program does with a screen that cannot show a character, is full, or that nobody reads any more."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from pretrain.screen import on_screen
def main():
    print("a \\u2192 \\u65e5 \\udcff", flush=len(sys.argv) > 1)
    print("b", file=sys.stderr)
    return 7
sys.exit(on_screen(main))
"""
LASTING = """
import sys
from pretrain.screen import on_screen, outlive_screen
def main():
    outlive_screen()
    for step in range(3):
        print("step", step, flush=True)
    return 0
sys.exit(on_screen(main))
"""
FORMS = pytest.mark.parametrize("words", [(), ("flush",), ("-u",)], ids=["at the end", "at once", "unbuffered"])


def python(*words: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, env=variables)


def program(words: tuple[str, ...], stdout: int, text: str = PROGRAM) -> subprocess.CompletedProcess[bytes]:
    options = [word for word in words if word.startswith("-")]
    return python(*options, "-c", text, *(word for word in words if word not in options), stdout=stdout)


def closed_pipe() -> int:
    """The end of a pipe whose reader is gone, as after ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C"}],
    ids=["ascii", "C", "coerced"],
)
def test_what_the_terminal_cannot_show_is_shown_by_its_number(environment: dict[str, str]) -> None:
    done = python("-c", PROGRAM, **environment)
    assert (done.returncode, done.stderr) == (7, b"b\n")
    shown = "a → 日 \\udcff\n".encode()
    assert done.stdout in (shown, b"a \\u2192 \\u65e5 \\udcff\n")
    assert done.stdout == shown or "PYTHONIOENCODING" in environment or "PYTHONUTF8" in environment


@FORMS
def test_a_reader_that_went_away_ends_the_program_without_a_word(words: tuple[str, ...]) -> None:
    done = program(words, closed_pipe())
    assert done.returncode == 141
    assert done.stderr in (b"", b"b\n")


@FORMS
def test_a_full_output_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = program(words, full.fileno())
    assert done.returncode == 2
    assert done.stderr.removeprefix(b"b\n").decode() == (
        "error: the output cannot be written (No space left on device); redirect it elsewhere\n"
    )


@FORMS
def test_a_run_outlives_its_screen(words: tuple[str, ...]) -> None:
    done = program(words, closed_pipe(), LASTING)
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("warning: stdout cannot be written any more (Broken pipe); the run goes on")


def test_other_broken_pipes_are_bugs_and_keep_their_traceback() -> None:
    text = PROGRAM.replace('    print("b"', '    raise BrokenPipeError("a worker died")\n    print("b"')
    done = python("-c", text)
    assert done.returncode == 1 and b"a worker died" in done.stderr


def test_a_program_without_a_screen_ends_as_any() -> None:
    done = subprocess.run(["sh", "-c", '"$0" "$@" >&- 2>&-', sys.executable, "-c", PROGRAM], cwd=ROOT)
    assert done.returncode == 7


def test_every_program_goes_through_it() -> None:
    """But those of launch/on_host, which are sent to hosts by themselves and print ASCII."""
    seen = 0
    for path in sorted([*ROOT.glob("pretrain/**/*.py"), *ROOT.glob("launch/**/*.py"), *ROOT.glob("tools/**/*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) and path.parent.name != "on_host":
                assert ast.unparse(node.body) in ("sys.exit(on_screen(main))", "leave_with(main)"), path
                seen += 1
    assert seen > 10


@pytest.mark.parametrize(
    "words",
    [("launch", "configs/quickstart.yaml", "--dry-run"), ("tools.plan", "configs/9m.yaml")],
    ids=["launch", "tool"],
)
def test_real_programs_into_head(words: tuple[str, ...]) -> None:
    done = python("-m", *words, stdout=closed_pipe())
    assert (done.returncode, done.stderr) == (141, b"")
