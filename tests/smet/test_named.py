"""Names of table entries, and of things in modules of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from smet.errors import ConfigError
from smet.named import find, is_own, problem
from smet.wanted import function_of

TABLE = {"random": len, "gradient": max}


def test_a_name_of_the_table_is_its_entry() -> None:
    assert find("growth", "random", TABLE) is len


def test_a_name_of_ones_own_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_growth.py").write_text("def grow(): return 3\nNUMBER = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("growth", "own_growth:grow", TABLE)() == 3
    with pytest.raises(ConfigError, match=r"own_growth has no 'grwo' \(did you mean 'grow'\?\)"):
        find("growth", "own_growth:grwo", TABLE)
    with pytest.raises(ConfigError, match=r"growth is 'own_growth:NUMBER', an int, expected a function of \(\)"):
        find("growth", "own_growth:NUMBER", TABLE, function_of())


def test_a_check_of_the_spelling_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert problem("growth", "planted:grow", TABLE) is None
    assert "planted" not in sys.modules


def test_a_module_that_breaks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_growth.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="broken_growth cannot be imported .ZeroDivisionError: division by zero"):
        find("growth", "broken_growth:grow", TABLE)
    with pytest.raises(ConfigError, match="module no_such_module cannot be imported"):
        find("growth", "no_such_module:grow", TABLE)


@pytest.mark.parametrize("name", ["radnom", "a:", ":b", "a/b:c", "../x:y", "a:b:c", "a b:c", 3, None, ""])
def test_anything_else_is_told_with_the_nearest_name(name: object) -> None:
    assert not is_own(name)
    wrong = problem("growth", name, TABLE)
    assert wrong is not None and "expected one of random, gradient, or package.module:name" in wrong
    assert ("did you mean 'random'" in wrong) == (name == "radnom")
