"""What the library calls ``prune_end`` is ``sparsity.prune_end`` in a run file: its messages are read beside one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from pretrain.errors import ConfigError
from smet.config import SmetConfig
from smet.notices import idle_notices

_NAMES = [part.name for part in fields(SmetConfig)]
_COMPOUND = "|".join(name for name in _NAMES if "_" in name)
_PLAIN = "|".join(name for name in _NAMES if "_" not in name)
_SETTING = re.compile(
    rf"(?<![\w.:'/-])(?:(?:{_COMPOUND})(?![\w:]|\.\w)"
    # Ordinary words are settings where a value follows, or at the beginning of what is said of them.
    rf"|(?:{_PLAIN})(?= '| \[)|(?:(?<=^)|(?<=: )|(?<=; ))(?:{_PLAIN})(?= is ))"
)


def in_run_file(text: str) -> str:
    """``text`` of the library, with its settings under their names in a run file."""
    return _SETTING.sub(lambda name: f"sparsity.{name[0]}", text)


def idle_in_run_file(config: SmetConfig) -> list[str]:
    """Settings that were given and decide nothing, by reason."""
    return [in_run_file(notice) for notice in idle_notices(config, "sparsity.")]


@contextmanager
def settings_by_run_file() -> Iterator[None]:
    """Let ``ConfigError`` that the library raises in here name settings as run files do."""
    try:
        yield
    except ConfigError as error:
        told = [in_run_file(text) for text in error.problems]
        if told == error.problems:
            raise
        raise ConfigError(told) from error
