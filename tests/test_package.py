"""What is installed: no folder and no file is forgotten, versions are ranges, and ``smet`` alone needs only torch and
numpy."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.imports import imported, modules_of
from tests.pages import ROOT
from tools.__main__ import main
from tools.commands import WORDS, Command
from tools.extras import DISTRIBUTION, EXTRAS, missing
from tools.packages import INSTALLED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = ("smet", "pretrain", "launch", "tools", "configs")
NAMES = {"huggingface_hub": "huggingface-hub", "yaml": "PyYAML", "PIL": "pillow"}
"""Distributions that are not called as the module that they bring."""
OF_TORCH = {"torch", "numpy", "triton"}
"""What the core brings: triton comes with torch where there is a GPU."""


def installed_as(path: Path) -> str:
    """The dotted name of a folder, as it is installed."""
    first, *rest = path.parts
    return ".".join([INSTALLED.get(first, first), *rest])


def test_every_package_is_listed() -> None:
    folders = {file.parent.relative_to(ROOT) for name in FOLDERS[:4] for file in (ROOT / name).rglob("*.py")}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders), "a folder without __init__.py"
    assert sorted(SETUPTOOLS["packages"]) == sorted([*map(installed_as, folders), "smet_configs"])
    assert SETUPTOOLS["package-dir"] == {name: folder for folder, name in INSTALLED.items()}


def test_every_file_beside_the_modules_is_listed() -> None:
    tracked = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True)
    others = [Path(line) for line in tracked.stdout.splitlines() if not line.endswith((".py", ".sh"))]
    assert len(others) > 30
    for path in others:
        patterns = SETUPTOOLS["package-data"].get(INSTALLED.get(path.parts[0], path.parts[0]), [])
        inside = "/".join(path.parts[1:])
        assert any(fnmatch(inside, form) for pattern in patterns for form in (pattern, pattern.removeprefix("**/"))), (
            f"{path} would not be installed"
        )


def test_the_version_and_the_types_are_where_they_are_said_to_be() -> None:
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "smet.__version__"} and "version" not in PROJECT["project"]
    assert re.search(r'^__version__ = "[\d.]+\w*"$', (ROOT / "smet" / "__init__.py").read_text(), flags=re.MULTILINE)
    assert (ROOT / "smet" / "py.typed").is_file() and (ROOT / "pretrain" / "py.typed").is_file()


def test_versions_of_python_are_said_alike() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    versions = [f"3.{minor}" for minor in range(5, 20) if f"3.{minor}" in supported]
    assert versions[0] == "3.10" and versions[-1] == "3.13"
    told = [one.rpartition(" ")[2] for one in PROJECT["project"]["classifiers"] if "Python :: 3." in one]
    assert told == versions
    assert f"{' | '.join(versions)}) ;;" in (ROOT / "launch" / "setup_env.sh").read_text()
    lowest = versions[0].replace(".", "")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest}"
    assert PROJECT["tool"]["mypy"]["python_version"] == versions[0]


def extra(name: str) -> list[Requirement]:
    """What an extra brings, with those that it names."""
    found = []
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][name]):
        inner = [part for other in requirement.extras for part in extra(other)]
        found += inner if requirement.name == DISTRIBUTION else [requirement]
    return found


def test_an_extra_brings_every_package_that_is_imported() -> None:
    own = {"smet", "pretrain", "launch", "tools", "tests"}
    files = modules_of(ROOT, FOLDERS[:4]).values()
    names = {name.partition(".")[0] for file in files for name in imported(file)}
    others = names - own - OF_TORCH - sys.stdlib_module_names
    assert others - EXTRAS.keys() == set(), "say in tools/extras.py which extra brings it"
    for module, name in EXTRAS.items():
        assert NAMES.get(module, module) in [one.name for one in extra(name)], module
    assert {one.name for one in extra("all")} == {NAMES.get(module, module) for module in EXTRAS}


def test_dependencies_are_ranges_that_the_pins_lie_in() -> None:
    ranges = {one.name: one.specifier for one in [*map(Requirement, PROJECT["project"]["dependencies"]), *extra("all")]}
    assert len(ranges) > 10
    assert all("==" not in str(specifier) for specifier in ranges.values())
    pinned = set()
    files = ("requirements.txt", "requirements-dev.txt")
    for line in [line for file in files for line in (ROOT / file).read_text().splitlines()]:
        if line and not line.startswith(("#", "-r")) and Requirement(line.partition(" #")[0]).name in ranges:
            pin = Requirement(line.partition(" #")[0])
            (version,) = pin.specifier
            pinned.add(pin.name)
            assert Version(version.version) in ranges[pin.name], f"{pin} is outside of {ranges[pin.name]}"
    others_bring, of_tests = {"pyarrow", "pydantic", "huggingface-hub", "rich"}, {"lm_eval"}
    assert ranges.keys() - pinned <= others_bring | of_tests


def test_a_missing_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert missing("smet plot", "tools.nothing") is None
    probe = ModuleType("tools.probe")
    exec("def main(arguments):\n    import matplotlib.pyplot", vars(probe))
    for name, module in (("tools.probe", probe), ("matplotlib", None), ("deepspeed", None)):
        monkeypatch.setitem(sys.modules, name, module)
    for module in [one for one in sys.modules if one.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", ["smet"])
    for needs, package, name in (((), "matplotlib", "plot"), (("deepspeed",), "deepspeed", "train")):
        monkeypatch.setitem(WORDS, "probe", Command("tools.probe", "", needs=needs))
        assert main(["probe"]) == 2
        said = f"error: smet probe needs {package}, which is not installed here; pip install 'smet-train[{name}]'\n"
        assert capsys.readouterr().err == said


def test_the_library_needs_only_torch_and_numpy() -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(EXTRAS)!r}))  # an import of these fails
import torch, smet
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
smet.sparsify(model, density=0.5, update_interval=2, warmup_steps=1)
optimizer = smet.AdamW(model, lr=1e-3)
run = smet.attach(optimizer, total_steps=4)
for _ in range(4):
    model(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
from smet import *
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
