"""Something of the wrong kind under a name of one's own is refused before anything is built: one line at each door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.__main__ import main
from pretrain.config.schema import WriterConfig
from pretrain.errors import ConfigError
from pretrain.writers import Run, make
from tests.pretrain.runs import settings, write_corpus

WRONG = """
from pretrain.callbacks.base import Callback
from pretrain.writers import Writer
from smet.compute.dense import Dense
from smet.optim.formula import Formula

class Anything:
    def __init__(self, *arguments, **options): ...

def one(site): ...

def four(site, count, more, still): ...

class Hook(Callback):
    def after_step(self, trainer): ...

class Mute(Writer):
    def __init__(self, run): ...
    def scalars(self, values): ...

class Asks(Dense):
    def __init__(self, much): ...

class Unforced(Dense):
    def serves(self, layer, x): ...

class Unnamed(Dense):
    name = None

class Idle(Formula):
    name = "idle"
    def update(self): ...

class Choosy(Formula):
    name = "choosy"
    def __init__(self, much): ...
    def update(self, values): ...

nothing = 3
"""
FUNCTIONS = {
    "growth": "(site, count)", "prune": "(site)", "mask_init": "(start, active)",
    "prune_schedule": "(progress, start, end)", "density_schedule": "(progress, start, end)",
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("kinds") / "corpus")


def refused(
    corpus: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> str:
    """The line in which a dry run ends."""
    (folder / "wrong_kinds.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(folder))
    given = settings(corpus, folder / "run")
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section} if isinstance(section, dict) else section
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    assert main([str(folder / "run.yaml"), "--dry-run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("setting", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "found"),
    [("Anything", "a class"), ("four", "a function of (site, count, more, still)"), ("nothing", "an int")],
)
def test_where_a_function_is_wanted(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, setting: str,
    name: str, found: str,
) -> None:  # fmt: skip
    line = refused(corpus, tmp_path, capsys, monkeypatch, sparsity={setting: f"wrong_kinds:{name}"})
    said = f"sparsity.{setting} is 'wrong_kinds:{name}', {found}, expected a function of {FUNCTIONS[setting]}"
    assert line == f"error: {said}"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"callbacks": ["wrong_kinds:one"]},
            "callbacks[0].name is 'wrong_kinds:one', a function of (site), expected a class derived from pretrain.call",
        ),
        (
            {"callbacks": ["wrong_kinds:Hook"]},
            "callbacks[0].name is 'wrong_kinds:Hook', whose after_step is a function of (self, trainer), expected one"
            " of (self, trainer, record)",
        ),
        (
            {"optimizer": {"name": "wrong_kinds:one"}},
            "optimizer.name is 'wrong_kinds:one', a function of (site), expected a class derived from smet.optim.formu",
        ),
        (
            {"optimizer": {"name": "wrong_kinds:Idle"}},
            "optimizer.name is 'wrong_kinds.Idle', whose update is a function of (self), expected one of (self, value",
        ),
        (
            {"optimizer": {"name": "wrong_kinds:Choosy"}},
            "optimizer.name is 'wrong_kinds.Choosy', which cannot be made (TypeError: ",
        ),
        ({"sparsity": {"compute": "wrong_kinds:one"}}, "sparsity.compute is one, which lacks serves, forward, input_"),
        ({"sparsity": {"compute": "wrong_kinds:Unnamed"}}, "sparsity.compute is Unnamed, which lacks name"),
        (
            {"sparsity": {"compute": "wrong_kinds:Unforced"}},
            "whose serves is a function of (self, layer, x), expected one of (self, layer, x, forced)",
        ),
        (
            {"sparsity": {"compute": "wrong_kinds:Asks"}},
            "sparsity.compute is 'wrong_kinds:Asks', which cannot be made (TypeError: ",
        ),
        (
            {"logging": {"writers": ["wrong_kinds:Anything"]}},
            "logging.writers[0] is 'wrong_kinds:Anything', a class, expected a class derived from pretrain.writers",
        ),
        ({"logging": {"writers": ["wrong_kinds:nothing"]}}, "logging.writers[0] is 'wrong_kinds:nothing', an int, exp"),
        (
            {"logging": {"writers": ["wrong_kinds:Mute"]}},
            "logging.writers[0] is 'wrong_kinds:Mute', whose scalars is a function of (self, values), expected one of",
        ),
        (
            {"model": {"family": "wrong_kinds:one"}},
            "model.family is 'wrong_kinds:one', a function of (site), expected a pretrain.models.family.Family",
        ),
    ],
)
def test_where_a_class_or_an_object_is_wanted(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any], said: str,
) -> None:  # fmt: skip
    assert said in refused(corpus, tmp_path, capsys, monkeypatch, **sections)


def test_a_function_that_gives_no_writer_is_told_when_it_is_called(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, name="run", settings={}, step=0, state={})
    with pytest.raises(ConfigError, match="^posixpath:basename gives a str, expected a pretrain.writers.Writer"):
        make(WriterConfig(name="posixpath:basename"), run.name)  # type: ignore[arg-type]
