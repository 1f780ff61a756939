"""The package offers its names without importing torch before one is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import smet


def test_every_public_name_is_the_one_of_its_module() -> None:
    for name in smet.__all__:
        value = getattr(smet, name)
        home = getattr(value, "__module__", "smet.config")
        assert value is getattr(import_module(home), name), name


def test_type_checkers_and_programs_see_the_same_names() -> None:
    tree = ast.parse(Path(smet.__file__).read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (alias.name, str(node.module).removeprefix("smet."))
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(smet._HOMES.items())  # type: ignore[attr-defined]
    assert sorted(smet.__all__) == sorted(name for name, _ in typed)
    assert set(smet.__all__) <= set(dir(smet))


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'smet' has no attribute 'Sparsify'"):
        getattr(smet, "Sparsify")  # noqa: B009 - a type checker would refuse the attribute
    with pytest.raises(ImportError, match="cannot import name 'Sparsify'"):
        exec("from smet import Sparsify")


def test_star_and_submodule_imports_work_and_errors_need_no_torch() -> None:
    program = (
        "import sys; import smet, smet.errors; from smet import UserError; assert 'torch' not in sys.modules;"
        "from smet import *; assert 'torch' in sys.modules and SmetAdamW.__name__ == 'SmetAdamW';"
        "from smet import kernels; assert kernels is smet.kernels"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
