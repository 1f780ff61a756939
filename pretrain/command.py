"""Command lines as advice: how this program was called, and what to start next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

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
    return shlex.join(["python", "-m", "pretrain", *kept, *overrides])


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
