"""What a model from elsewhere has and the model built here does not: named, and refused unless it is to be dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from pretrain.errors import CheckpointError


class Dropping:
    """What ``--drop`` allows to leave out, and what was left out.

    Args:
        patterns: names of tensors, files or keys of config.json, with ``*`` for any text.
    """

    def __init__(self, patterns: Iterable[str] = ()):
        self.patterns = tuple(patterns)
        self.dropped: list[str] = []
        self._used: set[str] = set()

    def takes(self, name: str) -> bool:
        """Whether ``name`` may be left out; then it is noted as dropped."""
        fitting = [pattern for pattern in self.patterns if fnmatchcase(name, pattern)]
        self._used.update(fitting)
        if fitting:
            self.dropped.append(name)
        return bool(fitting)

    def require_used(self) -> None:
        """Check that every pattern met something.

        Raises:
            CheckpointError: one did not, so that it may be misspelled.
        """
        for pattern in self.patterns:
            if pattern not in self._used:
                raise CheckpointError(
                    f"--drop {pattern} fits nothing that the model has beyond what is imported; see its spelling, or "
                    "leave it out"
                )


def folded(names: Iterable[str]) -> str:
    """All ``names``, those of several layers written as one: ``model.layers.{0,1}.mlp.up_proj.bias``."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.match(r"^(.*?\.)(\d+)(\..*)$", name)
        before, number, after = match.groups() if match else (name, "", "")
        kinds.setdefault((before, after), []).append(number)
    return ", ".join(
        before + (numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}") + after
        for (before, after), numbers in kinds.items()
    )
