"""The command that goes on with a run: for the supervisor's last line, and for ``status``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.paths import resolved


def command_of(arguments: Sequence[str]) -> str:
    """``python -m launch`` with these arguments; values of ``--env``, which may be secrets, are left out."""
    words = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        if before == "--env":
            word = word.partition("=")[0]
        elif word.startswith("--env="):
            word = "=".join(word.split("=")[:2])
        words.append(word)
    return shlex.join(["python", "-m", "launch", *words])


def with_overrides(command: str, overrides: Sequence[str]) -> str:
    """``command`` with these overrides in place of those for the same keys."""
    keys = {override.partition("=")[0] for override in overrides}
    kept = [word for word in shlex.split(command) if word.partition("=")[0] not in keys]
    return shlex.join([*kept, *overrides])


def goes_on(folder: Path, settings: dict[str, Any], step: int, ranks: int, hosts: int, given: str | None) -> str:
    """The command that continues the run in ``folder``, from its own settings.

    Args:
        settings: the run's ``config.yaml``.
        step: how far it is.
        ranks, hosts: that it ran on.
        given: how ``python -m launch`` was called last; None: it was not.
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
        start = ["python", "-m", "launch", file, "--hostfile", "HOSTS"]
    elif ranks > 1:
        start = ["deepspeed", "--num_gpus", str(ranks), "--module", "pretrain", file]
    else:
        start = ["python", "-m", "pretrain", file]
    return shlex.join([*start, *overrides])
