"""Commands that messages name work as they are: where ``smet`` is, and where a folder's name has blanks in it."""

from __future__ import annotations

import ast
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.attempt import Ended
from pretrain.command import INSTALLED, told
from pretrain.data.indexed import IndexedDataset
from pretrain.ends import last_line
from pretrain.errors import DataError
from pretrain.exit_codes import DONE
from pretrain.run_folder import Reached, RunFolder
from tests.imports import modules_of
from tests.launch.test_supervisor import Cluster, supervise
from tests.test_architecture import ROOT
from tools.commands import WORDS, Command, Group
from tools.import_hf import describe


def command(text: str, begin: str) -> list[str]:
    """The words of the command in ``text`` that begins so, as a shell takes them."""
    return shlex.split(text[text.index(begin) :].partition("; ")[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my 'best' run"
    made.mkdir()
    return made


def test_the_last_line_of_a_run(folder: Path) -> None:
    trainer = SimpleNamespace(step=8, total_steps=8, last_step=8, stop_reason="", folder=RunFolder(folder))
    said = last_line(cast(Any, trainer), first=0)
    assert command(said, told("plot")) == [*shlex.split(told("plot")), str(folder)]
    assert command(said, told("export")) == [*shlex.split(told("export")), str(folder), "OUT"]
    assert command(said, told("generate")) == [*shlex.split(told("generate")), str(folder), "TEXT"]


def test_the_last_line_of_the_supervisor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    run = folder / "runs" / "small"
    supervise(Cluster(run, [(Ended(DONE, "done"), Reached(10**6, 10**6))]), monkeypatch)
    said = capsys.readouterr().out.splitlines()[-1]
    assert command(said, told("plot"))[-1] == str(run)


def test_what_starts_an_imported_model(folder: Path) -> None:
    report: dict[str, Any] = {"out": f"{folder}/out", "checkpoint": f"{folder}/out/step-00000000", "tokenizer": ""}
    said = describe({**report, "passed_over": [], "dropped": [], "parameters": 1, "parameters_stored": 1})
    assert command(said, told("train"))[-1] == f"checkpoint.resume={folder}/out/step-00000000"


def test_what_makes_a_corpus_that_is_missing(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        IndexedDataset(folder / "corpus")
    assert command(str(caught.value), told("corpus", "make"))[-1] == f"{folder}/corpus"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that this project is installed in, below the working folder; its script is not on the path."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "smet").write_text(f"#!{scripts}/python\n")
    (scripts / "smet").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    installed_at(ROOT / "tools", monkeypatch)
    return scripts


def installed_at(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(origin=str(folder / "__init__.py")) if folder else None
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: spec if name == INSTALLED else pytest.fail(f"looked for {name}")
    )


def test_the_script_beside_the_interpreter_is_named_from_where_the_user_is(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told("plot", "a run") == ".venv/bin/smet plot 'a run'"
    monkeypatch.chdir("/")
    assert told("plot") == f"{environment}/smet plot".removeprefix("/")
    monkeypatch.chdir(environment / "..")
    assert told("plot") == "bin/smet plot"
    monkeypatch.chdir(environment)
    assert told("plot") == "./smet plot"
    (environment.parent / "other").mkdir()
    monkeypatch.chdir(environment.parent / "other")
    assert told("plot") == f"{environment}/smet plot"


def test_on_the_search_path_it_is_its_name_alone(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(environment))
    assert told("corpus", "verify", "x") == "smet corpus verify x"
    (environment.parent / "links").mkdir()
    (environment.parent / "links" / "smet").symlink_to(environment / "smet")
    monkeypatch.setenv("PATH", str(environment.parent / "links"))
    assert told("plot") == "smet plot"


def test_another_program_of_that_name_is_not_named(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = environment.parent / "foreign"
    foreign.mkdir()
    (foreign / "smet").write_text("#!/usr/bin/python3\n")
    (foreign / "smet").chmod(0o755)
    monkeypatch.setenv("PATH", str(foreign))
    assert told("plot") == ".venv/bin/smet plot"
    (environment / "smet").rename(environment / "gone")
    assert told("plot") == "python -m smet_tools plot"
    (foreign / "smet").write_text(f"#!{environment}/python3\n")  # a script elsewhere, of this interpreter
    assert told("plot") == "smet plot"


@pytest.mark.parametrize("place", [None, Path("/other/checkout/tools")])
def test_a_checkout_that_is_not_installed_goes_without(
    environment: Path, monkeypatch: pytest.MonkeyPatch, place: Path | None
) -> None:
    installed_at(place, monkeypatch)
    assert told("plot") == "python -m tools plot"


def test_every_command_that_is_named_is_one() -> None:
    """Words of ``told`` in the sources lead to a command of the table."""
    seen = 0
    for file in modules_of(ROOT, ("pretrain", "launch", "tools")).values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "told":
                found: Any = WORDS
                for word in node.args:
                    if isinstance(found, Command):
                        break
                    assert isinstance(word, ast.Constant) and word.value in found, f"{file}:{node.lineno}"
                    found = found[word.value]
                    found = found.commands if isinstance(found, Group) else found
                assert isinstance(found, Command), f"{file}:{node.lineno}"
                seen += 1
    assert seen > 15
