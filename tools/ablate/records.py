"""Lines of JSON that a cell writes beside its run, cut back where a resumed run does steps again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.records import read_rows
from pretrain.run_folder import write_atomically


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the rows of steps after ``step``, which will be done again."""
    if path.exists():
        kept = [row for row in read_rows(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
