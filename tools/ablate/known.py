"""Cells that somebody has run already: taken from a ``results.json`` where settings and text are the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pretrain.files import write_atomically

from . import collect, pool, text
from .cell import RESULT
from .matrix import Cell, Matrix


def plant(path: Path, load: Callable[[], Matrix], out: Path) -> Matrix:
    """Put results of ``path`` into the folders of cells that are not finished, and say on stderr how many fit.

    Args:
        load: reads the matrix anew, which has more cells once learning rates are known.

    Returns:
        The matrix as it is then.

    Raises:
        DataError: ``path`` holds no results.
    """
    known = {cell.get("name"): cell for cell in collect.read(path)["cells"] if isinstance(cell, dict)}
    taken: set[str] = set()
    while True:
        matrix = load()
        new = {cell.name for cell in matrix.cells if cell.name in known and _take(cell, known[cell.name], out)}
        if not new:
            break
        taken |= new
    others = sum(cell.name in known and not (out / cell.name / RESULT).exists() for cell in matrix.cells)
    said = f"{len(taken)} cells taken from {path}, with the seconds of the machine that ran them"
    print(f"{said}; {others} there have other settings or text", file=sys.stderr)
    return matrix


def _take(cell: Cell, result: Mapping[str, Any], out: Path) -> bool:
    folder = out / cell.name
    same = result.get("settings") == pool.digest(pool.spec(cell))
    if pool.finished(folder, cell) or not same or result.get("text") != text.identity(cell.config(folder).data):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    pool.write_spec(folder, cell)
    own = {key: value for key, value in result.items() if key != "settings"}
    write_atomically(folder / RESULT, json.dumps(own) + "\n")
    return True
