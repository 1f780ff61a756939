"""Writers that a user may write, outside the packages; run files name them as ``package.module:name``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.writers import Run, Writer


class Notebook(Writer):
    """A line of JSON per call, in a file; at some steps it fails."""

    def __init__(self, run: Run, file: str, fails: Sequence[int] = ()):
        self.file, self.fails = Path(file), fails
        self._note("open", step=run.step, before=dict(run.state), name=run.name, rank=os.environ["RANK"])

    def _note(self, kind: str, **content: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step in self.fails:
            raise OSError(28, "No space left on device")
        self._note("scalars", step=step, tags=sorted(values), loss=values["train/loss"])

    def event(self, kind: str, text: str, step: int) -> None:
        self._note("event", step=step, text=text)

    def state(self) -> dict[str, Any]:
        return {"page": 7}

    def close(self) -> None:
        self._note("close")


def broken(run: Run) -> Writer:
    """A service that is not there."""
    raise ConnectionError("nobody answers")
