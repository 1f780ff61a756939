"""The checkpoints of a run, and whether they can be gone on from as far as a look tells that reads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoint.folder import MANIFEST, published, read_manifest, step_of
from pretrain.errors import CheckpointError

from .lines import text

MOST = 50
"""Newest checkpoints that are looked at."""


class Checkpoints:
    """Published checkpoints of the folder ``root``, oldest first; each is looked at again when its manifest changes."""

    def __init__(self, root: Path):
        self.root = root
        self._seen: dict[tuple[str, int], dict[str, Any]] = {}

    def found(self) -> dict[str, Any]:
        """``rows`` of the newest ones, how many there are in ``all``, and the step of one that is being ``written``.

        Raises:
            OSError: the folder cannot be read.
        """
        paths = published(self.root)
        written = [step_of(path.with_name(path.name.removeprefix(".tmp-"))) for path in self.root.glob(".tmp-step-*")]
        seen = {}
        for path in paths[-MOST:]:
            key = (path.name, _changed(path))
            seen[key] = self._seen.get(key) or look(path)
        self._seen = seen
        return {"all": len(paths), "rows": list(seen.values()), "writing": max(written, default=None)}


def _changed(path: Path) -> int:
    try:
        return (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


def look(path: Path) -> dict[str, Any]:
    """What the manifest of the checkpoint ``path`` says, and what is wrong with it or with the sizes of its files."""
    row: dict[str, Any] = {"name": path.name, "step": step_of(path), "time": _changed(path) / 1e9, "bytes": None}
    try:
        files = read_manifest(path, option=None)["files"]
        total = sum(entry["bytes"] for entry in files.values())
        wrong = [name for name, entry in files.items() if _size(path / name) != entry["bytes"]]
    except (CheckpointError, OSError) as error:
        return {**row, "problem": text(error)}
    problem = text(f"{len(wrong)} of {len(files)} files are missing or cut off: {wrong[0]}") if wrong else None
    return {**row, "bytes": total, "problem": problem}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
