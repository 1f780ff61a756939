"""Command lines as advice: how this program was called, and what to start next."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

INSTALLED = "smet_tools"
"""What the package of the commands is called where the project is installed (tools/packages.py)."""

_given: list[str] = []
_called: list[str] = []


def call_it(program: str) -> None:
    """From now on ``program`` says ``smet plan`` or the like."""
    _called[:] = [program]


def program(module: str, *words: str) -> str:
    """How this program is called, for usage lines: as it was by ``smet``, else ``python -m MODULE WORDS``.

    Args:
        module: the one that is run.
        words: that the module takes for a command of its own.
    """
    return " ".join([*(_called or ["python", "-m", module.removesuffix(".__main__")]), *words])


def told(*words: str) -> str:
    """``smet WORDS`` in the shortest form that works where the user is: for every message that names a command.

    ``smet`` where it is on the search path and belongs to this program; else the script beside this interpreter, from
    the working folder; else, in a checkout that is not installed, ``python -m tools``.
    """
    return shlex.join([*_front(), *words])


def _front() -> list[str]:
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec(INSTALLED)
    place = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if place not in (root / "tools", root / INSTALLED):  # none is installed, or another program than this one
        return ["python", "-m", "tools" if (root / "tools").is_dir() else INSTALLED]
    beside, found = Path(sys.executable).with_name("smet"), shutil.which("smet")
    if found and (_is_same(found, beside) or _interpreter(found) == str(Path(sys.executable).parent)):
        return ["smet"]
    if not beside.is_file():
        return ["python", "-m", INSTALLED]
    with suppress(OSError, ValueError):  # a working folder that is gone, or another place altogether
        near = beside.relative_to(os.getcwd())
        return [str(near) if len(near.parts) > 1 else f"./{near}"]
    return [str(beside)]


def _is_same(one: str, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


def _interpreter(script: str) -> str:
    """The folder of the interpreter that ``script`` names in its first line."""
    with suppress(OSError), open(script, "rb") as file:
        return os.path.dirname(file.readline(4096).decode("utf-8", "replace").removeprefix("#!").strip())
    return ""


def remember(arguments: Iterable[str]) -> None:
    """Take note of this process's command line."""
    _given[:] = [word for word in arguments if not word.startswith("--local_rank")]


def again(*overrides: str, environ: Mapping[str, str] = os.environ) -> str:
    """The command that goes on, with ``overrides`` in place of those given for the same keys.

    In full for a process on its own; of several processes, a launcher that is not known here started them.
    """
    if environ.get("WORLD_SIZE", "1") != "1" or "SMET_LAUNCH_ID" in environ or not _given:
        return "the same command" + (f" with {shlex.join(overrides)}" if overrides else "")
    keys = {override.partition("=")[0] for override in overrides}
    kept = [word for word in _given if word.partition("=")[0] not in keys or word.startswith("-")]
    return told("train", *kept, *overrides)


def override(key: str, value: Any) -> str:
    """``value``, of a setting in plain data, as an override that gives it: ``train.steps=100``."""
    if value is None or isinstance(value, bool):
        return f"{key}={'null' if value is None else str(value).lower()}"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "path" in value[0]:
        value = value[0]["path"]  # a blend of one corpus
    if isinstance(value, (list, dict)):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20).strip()
        return f"{key}={text}"
    return f"{key}={value}"
