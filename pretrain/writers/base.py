"""What a run tells a writer, and what it asks of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run, as a writer sees it when it is made."""

    folder: Path
    """The run folder; what a writer keeps on disk goes below it, in a folder of its own."""
    name: str
    """What people call the run: the name of its folder."""
    settings: Mapping[str, Any]
    """All settings, resolved, as plain data."""
    step: int
    """The step after which this process goes on; 0 = the run begins."""
    state: Mapping[str, Any]
    """What ``Writer.state`` said in an earlier process of the run; empty where there was none."""


class Writer:
    """Takes a run's numbers and events. Only rank 0 has one, between steps, and never together with other ranks.

    What a method raises is told once and counted, and the run goes on. A method that waits, for a network say, holds
    the whole run up.

    Args:
        run: the run; further arguments are the ``options`` of the run file.
    """

    replaces = False
    """Whether a step that comes again, after going back to a checkpoint, can take the place of what was written of it.
    Other writers keep what they have, and get no step twice."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """The figures of a step, by grouped tags such as ``train/loss`` (``pretrain.writers.tags``)."""

    def event(self, kind: str, text: str, step: int) -> None:
        """Something that happened to the run beside training, in words; ``step``: the one that was going on."""

    def rewind(self, step: int) -> None:
        """Steps after ``step`` come again; called where ``replaces`` is true."""

    def where(self) -> str:
        """In a few words, how to look at it: a command or an address."""
        return ""

    def state(self) -> dict[str, Any]:
        """What a later process of the run needs to go on, as plain data; asked once, when the writer is made."""
        return {}

    def close(self) -> None:
        """Write all that is left, and end."""
