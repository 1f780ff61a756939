"""results.json: every number of a matrix, with what it took to get them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pretrain.command import told
from pretrain.errors import DataError
from pretrain.files import sha256_of
from pretrain.records import read_document

from . import pool
from .cell import RESULT
from .matrix import Matrix

FORMAT = 2
Results = dict[str, Any]


def results(matrix: Matrix, path: Path, out: Path, command: str, only: Sequence[str] = ()) -> Results:
    """All that is finished in ``out``, and the names of what is not.

    Args:
        only: names of the questions that ``matrix`` has cells of; without any, of all.

    Raises:
        DataError: a folder holds a cell of the same name with other settings.
    """
    from ..bench.machine import describe

    cells, missing = [], []
    for cell in matrix.cells:
        folder = out / cell.name
        if pool.finished(folder, cell):
            found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            cells.append({**found, "settings": pool.digest(pool.spec(cell))})
        else:
            missing.append(cell.name)
    missing += [f"{row} (no learning rate yet)" for row in matrix.waiting]
    texts = sorted({json.dumps(cell["text"]) for cell in cells if "text" in cell})
    device = cells[0]["device"] if cells else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", device)  # DeepSpeed guesses otherwise, and says so on stdout
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    return {
        "format": FORMAT,
        "command": command,
        "file": path.name,
        "sha256": sha256_of(path),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": describe(device),
        "revisions": sorted({cell["revision"] or "unknown" for cell in cells}),
        "texts": [json.loads(known) for known in texts],
        "cpu_seconds": round(sum(cell["cpu_seconds"] for cell in cells), 1),
        "wall_seconds": round(sum(cell["wall_seconds"] for cell in cells), 1),
        "not_asked": [name for name in matrix.content.get("questions") or {} if only and name not in only],
        "matrix": matrix.content,
        "missing": missing,
        "cells": cells,
    }


def to_text(content: Results) -> str:
    """The file's text: one line per cell, so that two versions can be compared."""
    head = {key: value for key, value in content.items() if key != "cells"}
    lines = ",\n".join(json.dumps(cell) for cell in content["cells"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "cells": [\n{lines}\n]}}\n'


def read(path: Path) -> Results:
    """Read ``results.json``.

    Raises:
        DataError: it is missing, or something else.
    """
    content: Results = read_document(path, f"make it with {told('ablate')}")
    if content.get("format") != FORMAT or not isinstance(content.get("cells"), list):
        raise DataError(f"{path} is not of format {FORMAT} of the experiment's results; make it anew")
    return content
