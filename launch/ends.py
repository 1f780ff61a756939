"""The command that goes on with a run: for the supervisor's last line, and for ``status``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.command import told
from pretrain.paths import resolved

STARTS = (("smet", "launch"), ("python", "-m", "launch"))
"""How a command begins that was noted in a run's events; the second is that of release 0.1."""


def command_of(arguments: Sequence[str]) -> str:
    """``smet launch`` with these arguments; values of ``--env``, which may be secrets, are left out."""
    words = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        if before == "--env":
            word = word.partition("=")[0]
        elif word.startswith("--env="):
            word = "=".join(word.split("=")[:2])
        words.append(word)
    return shlex.join([*STARTS[0], *words])


def with_overrides(command: str, overrides: Sequence[str]) -> str:
    """``command``, as it works here, with these overrides in place of those for the same keys."""
    keys = {override.partition("=")[0] for override in overrides}
    words = shlex.split(command)
    begin = next(len(start) for start in STARTS if tuple(words[: len(start)]) == start)
    kept = [word for word in words[begin:] if word.partition("=")[0] not in keys]
    return told("launch", *kept, *overrides)


def goes_on(folder: Path, settings: dict[str, Any], step: int, ranks: int, hosts: int, given: str | None) -> str:
    """The command that continues the run in ``folder``, from its own settings.

    Args:
        settings: the run's ``config.yaml``.
        step: how far it is.
        ranks, hosts: that it ran on.
        given: how ``smet launch`` was called last, as ``command_of`` notes it; None: it was not.
    """
    train = settings.get("train") or {}
    overrides = []
    if 0 < int(train.get("stop_at") or 0) <= step:
        overrides.append("train.stop_at=0")
    if resolved(str(train.get("output_dir", folder))) != resolved(folder):
        overrides.append(f"train.output_dir={folder}")  # it was moved, or is looked at from elsewhere
    if given is not None:
        return with_overrides(given, overrides)
    if (settings.get("checkpoint") or {}).get("resume", "auto") != "auto":
        overrides.append("checkpoint.resume=auto")
    file = str(folder / "config.yaml")
    if hosts > 1:
        return told("launch", file, "--hostfile", "HOSTS", *overrides)
    if ranks > 1:
        return shlex.join(["deepspeed", "--num_gpus", str(ranks), "--module", "pretrain", file, *overrides])
    return told("train", file, *overrides)
