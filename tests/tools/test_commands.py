"""``smet``: its table, its help, the words that it does not know, and what each command says how it was called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pretrain import command
from tests.pages import ROOT
from tools import __main__ as front
from tools.commands import COMMANDS, WORDS, Command, Group
from tools.packages import CONFIGS, INSTALLED, named


@pytest.fixture(autouse=True)
def called_as_smet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/smet"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(command, "_called", [])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def every(commands: Mapping[str, Command | Group] = WORDS, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command."""
    for word, one in commands.items():
        if isinstance(one, Command):
            yield (*path, word)
        else:
            yield from every(one.commands, (*path, word))


@pytest.mark.parametrize("path", list(every()), ids=" ".join)
def test_every_command_answers_help_under_the_name_it_was_called_by(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        front.main([*path, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: smet {' '.join(path)} ["), said[:200]
    assert "python -m" not in said


def test_without_the_front_usage_names_the_module() -> None:
    assert command.program("tools.bench.__main__", "gpu") == "python -m tools.bench gpu"
    command.call_it("smet bench")
    assert command.program("tools.bench.__main__", "gpu") == "smet bench gpu"


def test_help_lists_every_word_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from tools.__main__ import main; assert main(['--help']) == 0;"
        "heavy = {'torch', 'numpy', 'yaml', 'argparse', 'deepspeed'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for heading, commands in COMMANDS.items():
        assert f"\n{heading}:\n" in done.stdout
        for word, one in commands.items():
            assert f"  {word} " in done.stdout and one.help in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plott"], "'plott' is no command of smet (did you mean 'plot'?); smet --help lists its commands"),
        (["corpus", "verfy"], "'verfy' is no command of smet corpus (did you mean 'verify'?); smet corpus --help"),
        (["--jsno"], "'--jsno' is no option of smet; smet --help lists its commands"),
    ],
)
def test_a_word_that_is_none_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_no_word_at_all_is_answered_with_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([]) == front.main(["corpus"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "usage: smet COMMAND" in said.err and "usage: smet corpus COMMAND" in said.err


def test_arguments_reach_the_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["status", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no config.yaml" in capsys.readouterr().err
    assert front.main(["corpus", "verify", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_the_version_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    import smet

    assert front.main(["--version"]) == 0
    assert capsys.readouterr().out == f"smet {smet.__version__}\n"


def test_names_in_the_checkout_and_installed() -> None:
    assert named("launch.status") == "launch.status" and CONFIGS == ROOT / "configs"
    assert all((ROOT / folder).is_dir() for folder in INSTALLED)
