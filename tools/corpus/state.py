"""The work folder ``PREFIX.work``: finished parts, and what run they belong to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain import outside
from pretrain.data.indexed import index_path, tokens_path
from pretrain.data.manifest import manifest_path, read_manifest
from pretrain.data.writer import publish
from pretrain.errors import DataError

from ..locks import claim
from .parts import Part, PartSummary
from .sources import Source


class WorkFolder:
    """Parts of one run; a context manager that holds a lock and removes the folder only on ``finish``.

    Args:
        prefix: the output's prefix; the folder is ``PREFIX.work``.
        run: description of inputs and settings; parts of a run that differs are not taken over.
        restart: drop parts of a run that differs.

    Raises:
        DataError: another process works there, or it holds an unfinished run of other inputs or settings.
    """

    def __init__(self, prefix: str, run: dict[str, Any], restart: bool):
        self.path = Path(f"{prefix}.work")
        self._prefix, self._run, self._restart = prefix, run, restart

    def __enter__(self) -> WorkFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        # Without locks too parts are published whole, so that two runs only waste time.
        busy = f"another process is preprocessing to {self.path}; wait for it or end it"
        self._lock = claim(self.path / "lock", busy)
        self._take_over()
        return self

    def _take_over(self) -> None:
        path = self.path / "run.json"
        wanted = json.loads(json.dumps(self._run))
        found = _read(path) if path.exists() else None
        if found == wanted:
            return
        if found is not None and not self._restart:
            changed = ", ".join(key for key in wanted if found.get(key) != wanted[key]) or "an older version"
            raise DataError(
                f"{self.path} holds an unfinished run with other {changed}; finish it with the command it was started "
                "with, or start anew with --overwrite"
            )
        for part in self.path.glob("part-*"):
            part.unlink()
        publish(path, [json.dumps(wanted, indent=1).encode()])

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def parts(self) -> Iterator[Path]:
        """Finished parts, in output order."""
        # Names, not paths: a large corpus has hundreds of thousands.
        yield from map(self.path.joinpath, sorted(name for name in os.listdir(self.path) if name.startswith("part-")))

    def summaries(self) -> Iterator[PartSummary]:
        """Counts of the finished parts, in output order."""
        return (Part(path).summary for path in self.parts())

    def finish(self) -> None:
        """Remove the folder. Renamed first, so that a kill leaves no half a work folder behind."""
        os.replace(self.path, done_path(self._prefix))
        clear_done(self._prefix)


def _read(path: Path) -> dict[str, Any]:
    """What an unfinished run says of itself; empty where it is unreadable, which fits no run."""
    try:
        found = outside.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def done_path(prefix: str) -> Path:
    """The work folder of a complete run, while it is being removed."""
    return Path(f"{prefix}.work.done")


def clear_done(prefix: str) -> None:
    """Remove what a run that was killed in its very last moments left of its work folder."""
    shutil.rmtree(done_path(prefix), ignore_errors=True)


def existing_files(prefix: str) -> list[Path]:
    """Files of a corpus that stand at ``prefix``."""
    return [path for path in (tokens_path(prefix), index_path(prefix), manifest_path(prefix)) if path.exists()]


def already_made(
    prefixes: Sequence[str],
    tokenizer_sha256: str,
    sources: Sequence[Source],
    described: list[dict[str, Any]],
    settings: dict[str, Any],
) -> bool:
    """Whether complete corpora of exactly these inputs and settings stand at all ``prefixes``.

    Standard input cannot be compared, so its corpora never count; nor do those older than an input.
    """
    if any(source.path == "-" for source in sources):
        return False
    for prefix in prefixes:
        if len(existing_files(prefix)) < 3:
            return False
        manifest = read_manifest(prefix)
        if manifest is None or manifest.tokenizer_sha256 != tokenizer_sha256 or manifest.sources != described:
            return False
        if max(source.modified for source in sources) > manifest_path(prefix).stat().st_mtime_ns:
            return False
        if {key: manifest.settings.get(key) for key in settings} != settings:
            return False
    return True


def check_free(prefix: str, prefixes: Sequence[str], overwrite: bool) -> None:
    """Raise ``DataError`` if an output exists, unless an unfinished run of ours was about to replace it."""
    if overwrite or Path(f"{prefix}.work", "run.json").exists():
        return
    if taken := [str(path) for name in prefixes for path in existing_files(name)]:
        raise DataError(
            f"output {taken[0]} exists and was made from other inputs or settings; choose another --output, or "
            "replace it with --overwrite"
        )
