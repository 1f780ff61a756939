"""Errors that say who has to act.

``UserError`` is for what the person who started the program can mend. Its text is one line
that says what was found, what was expected and what to change; entry points print that line
and end with exit code 2. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend: one line with what was found, expected, and the remedy."""


class ConfigError(UserError):
    """A setting, or a combination of settings, that cannot work. Carries every problem found."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


def require_all(checks: Iterable[Callable[[], object]]) -> None:
    """Make every check, and raise what is wrong with all of them together.

    Raises:
        ConfigError: with every problem that a check raised.
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name nearest to ``name``, or ``""``."""
    match = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
